package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/xen-hvi/hvi/engine/journal"
	"github.com/xen-hvi/hvi/engine/policy"
)

// object is a JSON object.
type object = map[string]any

const (
	draft    = "https://json-schema.org/draft/2020-12/schema"
	schemaID = "urn:xen-hvi:schema:"
)

// schemas are the JSON Schemas that are published, by the names of their files.
// They are made from the code: of a new guard or a new field they know with the
// next docgen.
func schemas() map[string]object {
	return map[string]object{
		"event.schema.json":      eventSchema(),
		"policy.schema.json":     policySchema(),
		"domain.schema.json":     domainSchema(),
		"exceptions.schema.json": exceptionsSchema(),
	}
}

// writeSchema writes one as it is committed.
func writeSchema(s object) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(s)
	return b.Bytes(), err
}

func head(name, title, description string, rest object) object {
	rest["$schema"], rest["$id"], rest["title"], rest["description"] = draft, schemaID+name, title, description
	return rest
}

func textSchema(description string) object {
	return object{"type": "string", "description": description}
}

func oneOf[T ~string](words []T, description string) object {
	return object{"enum": words, "description": description}
}

// guardsSchema is the table [guards].
func guardsSchema() object {
	props := object{}
	for _, g := range policy.Guards() {
		var actions []string
		for _, word := range policy.Actions() {
			// The word is one of the table.
			if a, err := policy.ParseAction(word); err == nil && g.Permits(a) == nil {
				actions = append(actions, word)
			}
		}
		props[string(g.Name)] = oneOf(actions, g.Meaning)
	}
	return object{"type": "object", "description": "Actions of single guards.", "properties": props, "additionalProperties": false}
}

var onEngineFailure = oneOf(policy.EngineFailures(), "What becomes of the domain when hvid fails: it runs on without protection, or stands still until it is protected again.")

var requireAttach = object{
	"description": "Whether a domain may run only while it is attached to.",
	"anyOf":       []object{{"type": "boolean"}, {"enum": []string{"yes", "no", "on", "off", "true", "false", "1", "0"}}},
}

// exceptionSchema is one table [[exception]]; not are the keys that it can't have.
func exceptionSchema(not ...string) object {
	props := object{}
	var conditions []object
	for _, f := range policy.ExceptionFields() {
		p := textSchema(f.Meaning + ".")
		switch f.Name {
		case "guard":
			var names []policy.GuardName
			for _, g := range policy.Guards() {
				names = append(names, g.Name)
			}
			p = oneOf(names, f.Meaning+".")
		case "domain":
			p["pattern"] = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
		case "bytes":
			p["pattern"] = fmt.Sprintf("^([0-9A-Fa-f]{2}){1,%d}$", policy.MaxExceptionBytes)
		case "value":
			p["pattern"] = "^0x[0-9A-Fa-f]{1,16}$"
		case "comment":
			p["maxLength"] = policy.MaxComment
		}
		props[f.Name] = p
		if f.Condition && f.Name != "domain" && f.Name != "kernel" {
			conditions = append(conditions, object{"required": []string{f.Name}})
		}
	}
	for _, n := range not {
		delete(props, n)
	}
	return object{
		"type": "object", "description": "What would be a violation, and is permitted. Every condition that is set must be met.",
		"properties": props, "required": []string{"guard"}, "anyOf": conditions, "additionalProperties": false,
	}
}

func exceptionsOf(s object) object {
	return object{"type": "array", "maxItems": policy.MaxExceptions, "items": s}
}

// listSchema is a list of a policy.
func listSchema(l policy.List) object {
	element := object{"type": "string"}
	if l.Words != nil {
		element = object{"enum": l.Words}
	}
	return object{
		"description": l.Meaning + ".",
		"anyOf":       []object{element, {"type": "array", "maxItems": policy.MaxList, "items": element}},
	}
}

// viewsSchema is the tables [[view]].
func viewsSchema() object {
	return object{
		"type": "array", "maxItems": policy.MaxViews,
		"items": object{
			"type": "object", "description": "A view: which guards of memory hold while the guest runs in it.", "required": []string{"name"}, "additionalProperties": false,
			"properties": object{
				"name":    object{"type": "string", "description": "What it is called.", "pattern": fmt.Sprintf("^[a-z][a-z0-9_-]{0,%d}$", policy.MaxViewName-1), "not": object{"const": "host"}},
				"guards":  object{"type": "array", "description": "The guards of memory that hold in it; all where it is left out.", "uniqueItems": true, "items": object{"enum": policy.MemoryGuards()}},
				"switch":  oneOf(policy.ViewSwitches(), "Who may have a domain switched to it."),
				"initial": object{"type": "boolean", "description": "Whether a domain runs in it first. The first view is it where none says so."},
			},
		},
	}
}

func policySchema() object {
	props := object{"require_attach": requireAttach, "on_engine_failure": onEngineFailure, "guards": guardsSchema(), "exception": exceptionsOf(exceptionSchema("domain")), "view": viewsSchema()}
	for _, l := range policy.Lists() {
		props[string(l.Name)] = listSchema(l)
	}
	return head("policy", "hvi policy", "A file /etc/hvi/policies/NAME.toml: a policy that domains may name. See hvi-policy(5).", object{
		"type": "object", "additionalProperties": false,
		"properties": props,
	})
}

func domainSchema() object {
	modes := append(policy.Modes(), "0", "1", "yes", "no", "on", "true", "false")
	return head("domain", "hvi domain", "A file /etc/hvi/domains/NAME.toml: what holds for one domain. See hvi-policy(5).", object{
		"type": "object", "additionalProperties": false, "required": []string{"mode"},
		"properties": object{
			"mode":           oneOf(modes, "How far introspection goes."),
			"policy":         object{"type": "string", "description": "The policy to start from: a built-in one, or a file in /etc/hvi/policies without its ending.", "maxLength": policy.MaxName, "examples": presetNames()},
			"require_attach": requireAttach, "on_engine_failure": onEngineFailure, "guards": guardsSchema(),
		},
	})
}

func presetNames() []string {
	var names []string
	for _, p := range policy.Presets() {
		names = append(names, p.Name)
	}
	return names
}

func exceptionsSchema() object {
	return head("exceptions", "hvi exceptions", "The file /etc/hvi/exceptions.toml: the host's exceptions. See hvi-policy(5).", object{
		"type": "object", "additionalProperties": false, "properties": object{"exception": exceptionsOf(exceptionSchema())},
	})
}

// eventSchema is that of a journal.Record. A reader ignores members that it does not
// know, so that more of them are allowed.
func eventSchema() object {
	s := structSchema(reflect.TypeFor[journal.Record]())
	props := s["properties"].(object)
	props["type"] = object{"const": "event", "description": "What the line is: a security event."}
	props["summary"] = textSchema("The event in one line for people. Its wording may change.")
	s["required"] = append([]string{"type", "summary"}, s["required"].([]string)...)
	return head("event", "hvi security event", fmt.Sprintf("One line of hvictl events -o json, of /v1/events and of hvid's log, schema %d. Fields are added without another number; none is renamed, removed or given another meaning.", journal.Schema), s)
}

// structSchema is the JSON of a struct of fields.
func structSchema(t reflect.Type) object {
	props, required := object{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			in := structSchema(f.Type)
			for name, p := range in["properties"].(object) {
				props[name] = p
			}
			required = append(required, in["required"].([]string)...)
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		props[name] = typeSchema(f.Type)
		if !strings.Contains(opts, "omitempty") && !strings.Contains(opts, "omitzero") {
			required = append(required, name)
		}
	}
	return object{"type": "object", "properties": props, "required": required}
}

func typeSchema(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case reflect.TypeFor[journal.Action]():
		return object{"enum": journal.Actions()}
	case reflect.TypeFor[journal.Severity]():
		return object{"enum": journal.Severities()}
	case reflect.TypeFor[journal.HexBytes]():
		return object{"type": "string", "pattern": "^([0-9a-f]{2})*$"}
	case reflect.TypeFor[journal.ID]():
		return object{"type": "string", "pattern": "^[0-9a-f]{12}-[1-9][0-9]*$"}
	}
	if t.Kind() != reflect.Struct && t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		if t.Kind() == reflect.Uint64 {
			return object{"type": "string", "pattern": "^0x[0-9a-f]+$"}
		}
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem())
	case reflect.Slice:
		return object{"type": "array", "items": typeSchema(t.Elem())}
	case reflect.Struct:
		return structSchema(t)
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	}
	return object{"type": "integer"}
}
