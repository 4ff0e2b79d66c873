package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	retryInterval   = 200 * time.Millisecond // A Secret may be created after the pod that mounts it.
	refreshInterval = 2 * time.Second
	longestBackoff  = 30 * time.Second
	longEnough      = time.Minute // A run of this length starts the back-off anew.
)

// pod runs the containers of one pod, from its binding until its object is deleted.
type pod struct {
	node            *node
	namespace, name string
	uid             types.UID
	directory       string // Logs, volumes and mount points.
	log             *slog.Logger

	ended chan struct{} // Closed when the pod is to end.
	once  sync.Once
	grace time.Duration // Set before ended is closed.

	network *podNetwork // nil with hostNetwork.
	volumes map[string]string

	mutex      sync.Mutex
	spec       *corev1.Pod
	started    metav1.Time
	ready      bool // The network and the volumes are there.
	containers map[string]*containerState
	reported   *corev1.PodStatus
}

func newPod(node *node, spec *corev1.Pod) *pod {
	p := &pod{
		node: node, namespace: spec.Namespace, name: spec.Name, uid: spec.UID, spec: spec, started: metav1.Now(),
		directory:  filepath.Join(node.directory, "pods", fmt.Sprintf("%s_%s_%s", spec.Namespace, spec.Name, spec.UID)),
		log:        slog.With("node", node.name, "pod", spec.Namespace+"/"+spec.Name),
		ended:      make(chan struct{}),
		containers: map[string]*containerState{},
	}
	for _, container := range append(spec.Spec.InitContainers, spec.Spec.Containers...) {
		p.containers[container.Name] = &containerState{waiting: "ContainerCreating"}
	}
	return p
}

// update takes the newest object. A deletion starts with the grace period in it.
func (p *pod) update(spec *corev1.Pod) {
	p.mutex.Lock()
	p.spec = spec
	p.mutex.Unlock()
	if spec.DeletionTimestamp != nil {
		seconds := int64(0)
		if spec.DeletionGracePeriodSeconds != nil {
			seconds = *spec.DeletionGracePeriodSeconds
		}
		p.end(time.Duration(seconds) * time.Second)
	}
}

func (p *pod) end(grace time.Duration) {
	p.once.Do(func() {
		p.grace = grace
		close(p.ended)
	})
}

func (p *pod) current() *corev1.Pod {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return p.spec
}

func (p *pod) addresses() []string {
	if p.network == nil {
		return p.node.addresses()
	}
	return p.network.addresses()
}

func (p *pod) hostname(spec *corev1.Pod) string {
	switch {
	case spec.Spec.HostNetwork:
		return p.node.name
	case spec.Spec.Hostname != "":
		return spec.Spec.Hostname
	}
	return spec.Name
}

func (p *pod) run(ctx context.Context) {
	live, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-p.ended:
			stop()
		case <-ctx.Done():
		}
	}()
	p.report(ctx)
	spec := p.current() // The containers of a pod never change, whatever else of it does.
	var sidecars sync.WaitGroup
	if p.prepare(live, spec) && p.initialise(live, spec, &sidecars) {
		var containers sync.WaitGroup
		containers.Go(func() { p.refresh(live) })
		for _, container := range spec.Spec.Containers {
			containers.Go(func() { p.keepRunning(live, container, spec.Spec.RestartPolicy) })
		}
		containers.Wait()
	}
	<-live.Done()
	sidecars.Wait()
	p.tearDown()
	if ctx.Err() == nil {
		p.delete(ctx)
	}
}

// prepare makes the network and the volumes, as often as it takes. It gives false when the pod ended first.
func (p *pod) prepare(live context.Context, spec *corev1.Pod) bool {
	err := os.MkdirAll(p.directory, 0o755)
	if err == nil && !spec.Spec.HostNetwork {
		p.network, err = p.node.network.attach(string(p.uid))
	}
	if err != nil {
		p.log.Error("failed to prepare the pod", "error", err)
		return false
	}
	last := ""
	for {
		p.volumes, err = p.prepareVolumes(live, spec)
		if err == nil && spec.Spec.ServiceAccountName != "" && !isFalse(spec.Spec.AutomountServiceAccountToken) {
			p.volumes[serviceAccountPath], err = p.serviceAccount(live, spec)
		}
		if err == nil {
			p.mutex.Lock()
			p.ready = true
			p.mutex.Unlock()
			return true
		}
		if text := err.Error(); text != last && live.Err() == nil {
			p.log.Info("waiting for volumes", "error", err)
			last = text
		}
		if !sleep(live, retryInterval) {
			return false
		}
	}
}

func isFalse(value *bool) bool { return value != nil && !*value }

// sleep gives false when the context ended first.
func sleep(ctx context.Context, duration time.Duration) bool {
	select {
	case <-time.After(duration):
		return true
	case <-ctx.Done():
		return false
	}
}

// initialise runs the init containers one after the other. Those that always restart are sidecars and keep running.
func (p *pod) initialise(live context.Context, spec *corev1.Pod, sidecars *sync.WaitGroup) bool {
	for _, container := range spec.Spec.InitContainers {
		if policy := container.RestartPolicy; policy != nil && *policy == corev1.ContainerRestartPolicyAlways {
			sidecars.Go(func() { p.keepRunning(live, container, corev1.RestartPolicyAlways) })
			continue
		}
		policy := corev1.RestartPolicyOnFailure
		if spec.Spec.RestartPolicy == corev1.RestartPolicyNever {
			policy = corev1.RestartPolicyNever
		}
		if code := p.keepRunning(live, container, policy); code != 0 || live.Err() != nil {
			return false
		}
	}
	return true
}

// refresh brings changes of volumes to the containers, and reports again what could not be reported.
func (p *pod) refresh(live context.Context) {
	for sleep(live, refreshInterval) {
		p.refreshVolumes(live, p.current())
		p.report(live)
	}
}

// keepRunning starts a container again whenever its policy wants it, and gives its last exit code.
func (p *pod) keepRunning(live context.Context, container corev1.Container, policy corev1.RestartPolicy) int {
	state := p.containers[container.Name]
	backoff := time.Duration(0)
	for {
		process, err := p.startContainer(live, &container, state)
		if err != nil {
			p.set(state, func() { state.waiting, state.message = "CreateContainerError", err.Error() })
			if !sleep(live, time.Second) {
				return -1
			}
			continue
		}
		probing, stopProbing := context.WithCancel(live)
		var probe sync.WaitGroup
		probe.Go(func() { p.watchReadiness(probing, &container, state) })
		select {
		case <-process.done:
		case <-live.Done():
			grace := time.Duration(0)
			select {
			case <-p.ended:
				grace = p.grace
			default: // The node itself ends.
			}
			process.stop(context.Background(), grace)
		}
		stopProbing()
		probe.Wait()
		again := live.Err() == nil && (policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && process.code != 0)
		if process.ended.Sub(process.started) > longEnough {
			backoff = 0
		}
		p.set(state, func() {
			state.exited(process)
			if again && backoff > 0 {
				state.waiting, state.message = "CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container", backoff)
			}
		})
		if !again {
			return process.code
		}
		p.log.Info("container ended", "container", container.Name, "code", process.code, "restart in", backoff)
		if !sleep(live, backoff) {
			return process.code
		}
		backoff = min(max(2*backoff, time.Second), longestBackoff)
		p.set(state, func() { state.restarts++ })
	}
}

func (p *pod) startContainer(live context.Context, container *corev1.Container, state *containerState) (*process, error) {
	launch, err := p.describe(live, container)
	if err != nil {
		return nil, err
	}
	cgroup := ""
	if p.node.cgroup != "" {
		// A new one for every run: Linux (6.18) kills what is started in a cgroup that was killed before.
		cgroup = filepath.Join(p.podCgroup(), fmt.Sprintf("%s.%d", container.Name, state.restarts))
	}
	process, err := start(launch, cgroup, p.logPath(container.Name, state.restarts))
	if err != nil {
		return nil, err
	}
	p.set(state, func() {
		state.process, state.waiting, state.message, state.terminated = process, "", "", nil
	})
	return process, nil
}

func (p *pod) podCgroup() string {
	return filepath.Join(p.node.cgroup, "pod"+string(p.uid))
}

func (p *pod) describe(live context.Context, container *corev1.Container) (launch, error) {
	spec := p.current()
	image, known := findImage(p.node.images, container.Image)
	if !known {
		return launch{}, fmt.Errorf("no image map names a command for image %q", container.Image)
	}
	environment, err := p.environment(live, spec, container, image)
	if err != nil {
		return launch{}, err
	}
	privilege, err := readPrivilege(container.SecurityContext)
	if err != nil {
		return launch{}, err
	}
	l := launch{
		Namespace: p.node.network.name(), Hostname: p.hostname(spec), HostNetwork: spec.Spec.HostNetwork,
		Root: filepath.Join(p.directory, "root-"+container.Name), WorkingDir: "/", Env: environment,
		Cgroups: p.node.cgroup, Privilege: privilege,
	}
	if p.network != nil {
		l.Namespace = p.network.name
	}
	if container.WorkingDir != "" {
		l.WorkingDir = container.WorkingDir
	}
	l.Argv = arguments(image, container, environment)
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", p.addresses()[0], l.Hostname)
	for _, alias := range spec.Spec.HostAliases {
		hosts += alias.IP + " " + strings.Join(alias.Hostnames, " ") + "\n"
	}
	search := strings.TrimSuffix(clusterDomain, ".")
	l.Files = map[string]string{
		"/etc/hostname": l.Hostname + "\n",
		"/etc/hosts":    hosts,
		"/etc/resolv.conf": fmt.Sprintf("search %s.svc.%s svc.%s %s\nnameserver %s\noptions ndots:5\n",
			spec.Namespace, search, search, search, worldAddress4.Addr()),
	}
	for target, source := range image.Mounts {
		l.Mounts = append(l.Mounts, mount{Source: source, Target: target, ReadOnly: true})
	}
	for _, volume := range container.VolumeMounts {
		source, known := p.volumes[volume.Name]
		if !known {
			return launch{}, fmt.Errorf("volume %q does not exist", volume.Name)
		}
		l.Mounts = append(l.Mounts, mount{
			Source: filepath.Join(source, volume.SubPath), Target: volume.MountPath, ReadOnly: volume.ReadOnly,
		})
	}
	if account, known := p.volumes[serviceAccountPath]; known {
		l.Mounts = append(l.Mounts, mount{Source: account, Target: serviceAccountPath, ReadOnly: true})
	}
	return l, nil
}

// arguments puts the mapped command in the place of the image's entry point. When the pod has a command of its own, only
// that command's first word is replaced.
func arguments(image imageRule, container *corev1.Container, environment []string) []string {
	values := map[string]string{}
	for _, variable := range environment {
		name, value, _ := strings.Cut(variable, "=")
		values[name] = value
	}
	argv := append([]string{}, image.Command...)
	for _, word := range container.Command[min(1, len(container.Command)):] {
		argv = append(argv, expand(word, values))
	}
	for _, word := range container.Args {
		argv = append(argv, expand(word, values))
	}
	return argv
}

func (p *pod) logPath(container string, run int32) string {
	return filepath.Join(p.directory, fmt.Sprintf("%s.%d.log", container, run))
}

func (p *pod) logFile(container string, previous bool) (string, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	state := p.containers[container]
	if state == nil {
		return "", fmt.Errorf("no such container: %s", container)
	}
	run := state.restarts
	if previous {
		run--
	}
	return p.logPath(container, run), nil
}

// tearDown removes all of the pod but its logs.
func (p *pod) tearDown() {
	if p.network != nil {
		p.node.network.detach(p.network)
	}
	if p.node.cgroup != "" {
		removeCgroups(p.podCgroup())
	}
	_ = os.RemoveAll(filepath.Join(p.directory, "volumes"))
	for name := range p.containers {
		_ = os.Remove(filepath.Join(p.directory, "root-"+name))
	}
}

// delete lets the object go, now that nothing of the pod runs.
func (p *pod) delete(ctx context.Context) {
	now, uid := int64(0), p.uid
	for {
		err := p.node.client.CoreV1().Pods(p.namespace).Delete(ctx, p.name, metav1.DeleteOptions{
			GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid},
		})
		if err == nil || errors.IsNotFound(err) || errors.IsConflict(err) {
			return
		}
		p.log.Warn("failed to delete the pod's object", "error", err)
		if !sleep(ctx, time.Second) {
			return
		}
	}
}
