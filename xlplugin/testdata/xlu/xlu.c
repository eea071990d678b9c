/*
 * The judge of what xl accepts: xl's own parser, libxlutil, asked through its
 * public interface. Run by TestAgainstXl.
 *
 * stdin:  requests; each is a config and a key, both as a length (4 bytes,
 *         little endian) and that many bytes
 * stdout: one line per request: "error", "none" (no such key), or the key's
 *         value, strings as 'hex digits', lists as [ , ]
 *
 * Each request runs in its own process, because some configs make the parser
 * abort; such a config is no config, and the answer is "error".
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <libxl.h>
#include <libxlutil.h>

static char *read_sized(uint32_t *len)
{
    char *data;

    if (fread(len, 4, 1, stdin) != 1)
        return NULL;
    data = malloc(*len + 1);
    if (!data || fread(data, 1, *len, stdin) != *len)
        exit(2);
    data[*len] = 0;
    return data;
}

static void print_value(const XLU_Config *cfg, XLU_ConfigValue *v)
{
    XLU_ConfigList *list;
    char *s;
    int i;

    if (xlu_cfg_value_type(v) == XLU_STRING) {
        xlu_cfg_value_get_string(cfg, v, &s, 1);
        putchar('\'');
        for (; *s; s++)
            printf("%02x", (unsigned char)*s);
        putchar('\'');
        return;
    }
    xlu_cfg_value_get_list(cfg, v, &list, 1);
    putchar('[');
    for (i = 0; (v = xlu_cfg_get_listitem2(list, i)); i++) {
        if (i)
            putchar(',');
        print_value(cfg, v);
    }
    putchar(']');
}

static void answer(const char *data, uint32_t len, const char *key)
{
    FILE *nowhere = fopen("/dev/null", "w");
    XLU_Config *cfg = xlu_cfg_init(nowhere, "config");
    XLU_ConfigList *list;
    const char *s;
    int i, n;

    if (xlu_cfg_readdata(cfg, data, len)) {
        puts("error");
    } else if (!xlu_cfg_get_string(cfg, key, &s, 1)) {
        putchar('\'');
        for (; *s; s++)
            printf("%02x", (unsigned char)*s);
        puts("'");
    } else if (!xlu_cfg_get_list(cfg, key, &list, &n, 1)) {
        putchar('[');
        for (i = 0; i < n; i++) {
            if (i)
                putchar(',');
            print_value(cfg, xlu_cfg_get_listitem2(list, i));
        }
        puts("]");
    } else {
        puts("none");
    }
    fflush(stdout);
}

int main(void)
{
    uint32_t len, key_len;
    char *data, *key;

    while ((data = read_sized(&len)) && (key = read_sized(&key_len))) {
        int status;
        pid_t pid;

        fflush(stdout);
        pid = fork();
        if (pid < 0)
            return 2;
        if (!pid) {
            if (!freopen("/dev/null", "w", stderr))
                _exit(2);
            answer(data, len, key);
            _exit(0);
        }
        if (waitpid(pid, &status, 0) != pid)
            return 2;
        if (!WIFEXITED(status)) {
            puts("error");
            fflush(stdout);
        }
        free(data);
        free(key);
    }
    return 0;
}
