package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// launch is everything that a container's process is made of. The node writes it to descriptor 3 of its own executable,
// which then becomes the process; a new mount namespace is already its own.
type launch struct {
	Namespace   string // Name of the network namespace.
	Hostname    string
	Root        string // Mount point of the root file system, which is built here.
	Argv        []string
	Env         []string
	WorkingDir  string
	Files       map[string]string // Generated files, by path in the container.
	Mounts      []mount
	Cgroups     string // What the container sees as the unified cgroup hierarchy: the node's part of this machine's.
	Privilege   privilege
	HostNetwork bool
}

type mount struct {
	Source, Target string
	ReadOnly       bool
}

// Programs of this machine are dynamically linked, and their libraries, certificates and zones have to be where they
// look for them. All else of the container is its own.
var sharedPaths = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ssl", "/etc/ca-certificates", "/etc/ld.so.cache",
	"/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
	"/etc/protocols", "/etc/services", "/etc/localtime",
}

func becomeContainer(description *os.File) error {
	var launch launch
	if err := json.NewDecoder(description).Decode(&launch); err != nil {
		return fmt.Errorf("failed to read what to launch: %w", err)
	}
	description.Close()
	namespace, err := netns.GetFromName(launch.Namespace)
	if err != nil {
		return fmt.Errorf("failed to open network namespace %s: %w", launch.Namespace, err)
	}
	if err := netns.Set(namespace); err != nil {
		return fmt.Errorf("failed to enter network namespace %s: %w", launch.Namespace, err)
	}
	if !launch.HostNetwork {
		if err := syscall.Sethostname([]byte(launch.Hostname)); err != nil {
			return fmt.Errorf("failed to set the host name: %w", err)
		}
	}
	if err := launch.buildRoot(); err != nil {
		return err
	}
	if err := syscall.Chroot(launch.Root); err != nil {
		return fmt.Errorf("failed to change the root: %w", err)
	}
	if err := os.Chdir(launch.WorkingDir); err != nil {
		return fmt.Errorf("failed to change the directory: %w", err)
	}
	os.Clearenv()
	for _, variable := range launch.Env {
		name, value, _ := strings.Cut(variable, "=")
		os.Setenv(name, value)
	}
	executable, err := exec.LookPath(launch.Argv[0])
	if err != nil {
		return err
	}
	if err := launch.Privilege.take(); err != nil {
		return err
	}
	err = syscall.Exec(executable, launch.Argv, launch.Env)
	return fmt.Errorf("failed to execute %s: %w", executable, err)
}

func (l *launch) buildRoot() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("failed to make mounts private: %w", err)
	}
	if err := os.MkdirAll(l.Root, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", l.Root, "tmpfs", 0, "mode=755,size=512m"); err != nil {
		return fmt.Errorf("failed to mount the root: %w", err)
	}
	for _, directory := range []string{"/etc", "/tmp", "/run", "/var/run", "/var/tmp", "/var/lib", "/var/log", "/root"} {
		if err := os.MkdirAll(l.Root+directory, 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chmod(l.Root+"/tmp", 0o1777), os.Chmod(l.Root+"/var/tmp", 0o1777)); err != nil {
		return err
	}
	for _, path := range sharedPaths {
		if err := l.share(path); err != nil {
			return err
		}
	}
	for _, kernel := range []string{"/proc", "/dev"} {
		if err := l.bind(mount{Source: kernel, Target: kernel}); err != nil {
			return err
		}
	}
	if err := l.mountSys(); err != nil {
		return err
	}
	for path, content := range l.Files {
		if err := os.WriteFile(l.Root+path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, mount := range l.Mounts {
		if err := l.bind(mount); err != nil {
			return err
		}
	}
	executable := l.Argv[0]
	if _, err := os.Stat(l.Root + executable); filepath.IsAbs(executable) && err != nil {
		if err := l.bind(mount{Source: executable, Target: executable, ReadOnly: true}); err != nil {
			return err
		}
	}
	if l.Privilege.ReadOnlyRoot {
		// The volumes are mounts of their own and stay as they are.
		if err := syscall.Mount("", l.Root, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("failed to make the root read-only: %w", err)
		}
	}
	return nil
}

// mountSys gives the container a /sys of its own network namespace, and the node's part of the unified cgroup hierarchy
// where the whole is usually found, however this machine is set up.
func (l *launch) mountSys() error {
	target := l.Root + "/sys"
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	var flags uintptr = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
	if err := syscall.Mount("sysfs", target, "sysfs", flags, ""); err != nil {
		return fmt.Errorf("failed to mount /sys: %w", err)
	}
	if l.Cgroups != "" {
		cgroups := mount{Source: l.Cgroups, Target: "/sys/fs/cgroup", ReadOnly: !l.Privilege.Privileged}
		if err := l.bind(cgroups); err != nil {
			return err
		}
	}
	for _, debug := range []string{"/sys/kernel/debug", "/sys/kernel/tracing"} {
		if l.Privilege.Privileged && isMountPoint(debug) {
			if err := l.bind(mount{Source: debug, Target: debug}); err != nil {
				return err
			}
		}
	}
	if !l.Privilege.Privileged {
		return syscall.Mount("", target, "", flags|syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, "")
	}
	return nil
}

func isMountPoint(path string) bool {
	var self, parent unix.Stat_t
	return unix.Lstat(path, &self) == nil && unix.Lstat(filepath.Dir(path), &parent) == nil && self.Dev != parent.Dev
}

// share shows a path of this machine read-only, keeping symbolic links (such as /bin) as they are.
func (l *launch) share(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSymlink != 0 && !strings.HasPrefix(path, "/etc/") {
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(target, l.Root+path)
	}
	return l.bind(mount{Source: path, Target: path, ReadOnly: true})
}

func (l *launch) bind(mount mount) error {
	target := filepath.Join(l.Root, mount.Target)
	info, err := os.Stat(mount.Source)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = touch(target)
	}
	if err != nil {
		return fmt.Errorf("failed to make a mount point at %s: %w", mount.Target, err)
	}
	if err := syscall.Mount(mount.Source, target, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("failed to mount %s at %s: %w", mount.Source, mount.Target, err)
	}
	if mount.ReadOnly {
		attributes := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &attributes); err != nil {
			return fmt.Errorf("failed to make %s read-only: %w", mount.Target, err)
		}
	}
	return nil
}

func touch(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}
