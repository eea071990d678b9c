module github.com/xen-hvi/hvi/lab/libvirtgo

go 1.26.0

require libvirt.org/go/libvirt v1.11010.0
