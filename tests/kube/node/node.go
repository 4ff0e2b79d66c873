package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const kubeletPort = 10250

func nodeName(number int) string { return fmt.Sprintf("node-%d", number) }

// node is one kubelet: a network namespace, a directory that hostPath volumes see, and the pods bound to it.
type node struct {
	name        string
	number      int
	client      kubernetes.Interface
	network     *nodeNetwork
	images      []imageRule
	apiserverCA []byte
	directory   string
	cgroup      string // The node's part of the unified hierarchy; empty when the machine has none.

	mutex   sync.Mutex
	pods    map[string]*pod // By uid.
	running sync.WaitGroup
}

func (n *node) addresses() []string {
	return []string{nodeAddress4(n.number).Addr().String(), nodeAddress6(n.number).Addr().String()}
}

func (n *node) bpf() string { return filepath.Join(n.directory, "bpf") }

// prepare makes the node's directories. Each node has a BPF file system of its own, so that agents of different nodes
// do not share their pins.
func (n *node) prepare() error {
	directories := []string{n.bpf(), filepath.Join(n.directory, "root"), filepath.Join(n.directory, "pods")}
	if n.cgroup != "" {
		directories = append(directories, n.cgroup)
	}
	for _, directory := range directories {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return err
		}
	}
	if isMountPoint(n.bpf()) {
		return nil
	}
	if err := syscall.Mount("bpf", n.bpf(), "bpf", 0, "mode=700"); err != nil {
		slog.Warn("the node has no BPF file system", "node", n.name, "error", err)
	}
	return nil
}

// The machine's own files that containers may see; below all other paths a node has its own.
var machinePaths = []string{"/proc", "/sys", "/dev", "/lib/modules", "/usr", "/boot", "/run/netns", "/var/run/netns"}

func (n *node) hostPath(volume *corev1.HostPathVolumeSource) (string, error) {
	path := filepath.Clean("/" + volume.Path)
	if rest, below := strings.CutPrefix(path, "/sys/fs/bpf"); below {
		path = n.bpf() + rest
		return path, os.MkdirAll(path, 0o755)
	}
	// What an agent attaches to the root of the hierarchy must meet the processes of its node only.
	if path == "/sys/fs/cgroup" && n.cgroup != "" {
		return n.cgroup, nil
	}
	for _, shared := range machinePaths {
		if path == shared || strings.HasPrefix(path, shared+"/") {
			_, err := os.Stat(path)
			return path, err
		}
	}
	path = filepath.Join(n.directory, "root", path)
	kind := corev1.HostPathUnset
	if volume.Type != nil {
		kind = *volume.Type
	}
	switch kind {
	case corev1.HostPathFileOrCreate:
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		return path, touch(path)
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		return path, os.MkdirAll(path, 0o755)
	}
	_, err := os.Stat(path)
	return path, err
}

// register writes the Node object. Nothing expires it, since no node lifecycle controller runs.
func (n *node) register(ctx context.Context) error {
	object := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{
			corev1.LabelHostname: n.name, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		}},
		Spec: corev1.NodeSpec{
			PodCIDR:  podRange4(n.number).String(),
			PodCIDRs: []string{podRange4(n.number).String(), podRange6(n.number).String()},
		},
	}
	_, err := n.client.CoreV1().Nodes().Create(ctx, object, metav1.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		return fmt.Errorf("failed to register %s: %w", n.name, err)
	}
	object, err = n.client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	// More than any test asks for: nothing is measured or limited.
	object.Status.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1Ti"),
		corev1.ResourcePods: resource.MustParse("4000"), corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
	}
	object.Status.Allocatable = object.Status.Capacity
	object.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: n.addresses()[0]},
		{Type: corev1.NodeInternalIP, Address: n.addresses()[1]},
		{Type: corev1.NodeHostName, Address: n.name},
	}
	object.Status.DaemonEndpoints.KubeletEndpoint.Port = kubeletPort
	now := metav1.Now()
	object.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now},
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, LastHeartbeatTime: now, LastTransitionTime: now},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, LastHeartbeatTime: now, LastTransitionTime: now},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, LastHeartbeatTime: now, LastTransitionTime: now},
	}
	object.Status.NodeInfo = corev1.NodeSystemInfo{
		OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH, OSImage: "process node",
		ContainerRuntimeVersion: "process://1", KubeletVersion: "v0.0.0-process-node",
	}
	if _, err := n.client.CoreV1().Nodes().UpdateStatus(ctx, object, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("failed to report the status of %s: %w", n.name, err)
	}
	return nil
}

func (n *node) sync(ctx context.Context, spec *corev1.Pod) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	uid := string(spec.UID)
	p, known := n.pods[uid]
	if !known {
		if spec.Status.Phase == corev1.PodSucceeded || spec.Status.Phase == corev1.PodFailed {
			return
		}
		p = newPod(n, spec)
		n.pods[uid] = p
		n.running.Go(func() {
			p.run(ctx)
			n.mutex.Lock()
			defer n.mutex.Unlock()
			delete(n.pods, uid)
		})
	}
	p.update(spec)
}

func (n *node) gone(spec *corev1.Pod) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if p := n.pods[string(spec.UID)]; p != nil {
		p.end(0)
	}
}

func (n *node) find(namespace, name string) *pod {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for _, p := range n.pods {
		if p.namespace == namespace && p.name == name {
			return p
		}
	}
	return nil
}

// shutDown waits for the pods, which end with the context, and removes what prepare and newNodeNetwork made.
func (n *node) shutDown() {
	n.running.Wait()
	removeCgroups(n.cgroup)
	_ = syscall.Unmount(n.bpf(), syscall.MNT_DETACH)
	n.network.remove()
}

// serve answers the apiserver at the address of the node, as a kubelet does.
func (n *node) serve(ctx context.Context) error {
	certificate, err := selfSigned(n.name)
	if err != nil {
		return err
	}
	var listener net.Listener
	err = inNamespace(n.network.namespace, func() error {
		listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", n.addresses()[0], kubeletPort))
		return err
	})
	if err != nil {
		return fmt.Errorf("failed to listen as the kubelet of %s: %w", n.name, err)
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.containerLogs)
	server := &http.Server{
		Handler:     routes,
		TLSConfig:   &tls.Config{Certificates: []tls.Certificate{certificate}},
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	go func() {
		if err := server.ServeTLS(listener, "", ""); err != nil && ctx.Err() == nil {
			slog.Error("the kubelet's server ended", "node", n.name, "error", err)
		}
	}()
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	return nil
}

func (n *node) containerLogs(answer http.ResponseWriter, request *http.Request) {
	query, err := parseLogQuery(request.URL.Query())
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	p := n.find(request.PathValue("namespace"), request.PathValue("pod"))
	if p == nil {
		http.Error(answer, "no such pod on this node", http.StatusNotFound)
		return
	}
	file, err := p.logFile(request.PathValue("container"), query.previous)
	if err == nil {
		err = serveLog(request.Context(), answer, file, query)
	}
	if err != nil {
		http.Error(answer, err.Error(), http.StatusNotFound)
	}
}

// selfSigned makes a certificate for the kubelet's server. The apiserver does not verify it.
func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
