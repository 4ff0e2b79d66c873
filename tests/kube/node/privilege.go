package main

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Names of capabilities by their number (linux/capability.h), without the prefix CAP_, as Kubernetes spells them.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
	"SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
	"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// What containerd gives a container that asks for nothing (pkg/oci/spec.go, defaultUnixCaps).
var defaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
	"NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
}

// privilege is what a container may do beyond its user.
type privilege struct {
	Privileged bool // All capabilities, and a writable /sys.
	// Limited containers keep the capabilities named here and lose all others. The rest keep what the node has: the
	// programs that stand in for images may need more of a machine than they need of an image.
	Limited      bool
	Capabilities []string
	ReadOnlyRoot bool
}

// readPrivilege takes a container's security context. Only what it says of capabilities is obeyed.
func readPrivilege(context *corev1.SecurityContext) (privilege, error) {
	if context == nil {
		return privilege{}, nil
	}
	p := privilege{Privileged: isTrue(context.Privileged), ReadOnlyRoot: isTrue(context.ReadOnlyRootFilesystem)}
	if p.Privileged || context.Capabilities == nil {
		return p, nil
	}
	p.Limited = true
	for _, name := range append(slices.Clone(context.Capabilities.Add), context.Capabilities.Drop...) {
		if name != "ALL" && !slices.Contains(capabilityNames, trim(name)) {
			return p, fmt.Errorf("capability %q is not known", name)
		}
	}
	listed := func(list []corev1.Capability, name string) bool {
		return slices.ContainsFunc(list, func(listed corev1.Capability) bool { return trim(listed) == name })
	}
	for _, name := range capabilityNames {
		add, drop := context.Capabilities.Add, context.Capabilities.Drop
		byDefault := slices.Contains(defaultCapabilities, name) || listed(add, "ALL")
		if listed(add, name) || byDefault && !listed(drop, name) && !listed(drop, "ALL") {
			p.Capabilities = append(p.Capabilities, name)
		}
	}
	return p, nil
}

func trim(name corev1.Capability) string { return strings.TrimPrefix(string(name), "CAP_") }

// take leaves the calling thread's next program with the container's capabilities. A program that root executes gets
// what is in the bounding set, and what is inheritable.
func (p privilege) take() error {
	if !p.Limited {
		return nil
	}
	for number, name := range capabilityNames {
		if slices.Contains(p.Capabilities, name) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(number), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("failed to drop CAP_%s: %w", name, err) // EINVAL: newer than the kernel.
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("failed to read the capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("failed to clear the inheritable capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("failed to clear the ambient capabilities: %w", err)
	}
	return nil
}
