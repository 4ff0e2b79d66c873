package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type Options struct {
	Kubeconfig  string
	World       string
	State       string
	Bin         string
	Images      []imageRule
	Nodes       int
	APIServerCA string
	ClusterIPs  bool
}

// cluster is all nodes of this machine.
type cluster struct {
	client kubernetes.Interface
	nodes  map[string]*node
	// Names of Services stand for their ClusterIPs.
	clusterIPs bool
}

func newCluster(ctx context.Context, options Options) (*cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", options.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("failed to read %s: %w", options.Kubeconfig, err)
	}
	config.QPS, config.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(options.APIServerCA)
	if err != nil {
		return nil, fmt.Errorf("failed to read the apiserver's CA: %w", err)
	}
	if err := setUpWorld(); err != nil {
		return nil, fmt.Errorf("failed to set up the world's network: %w", err)
	}
	cgroups, err := claimCgroup(options.World)
	if err != nil {
		slog.Warn("pods get no cgroups", "error", err)
	}
	c := &cluster{client: client, nodes: map[string]*node{}, clusterIPs: options.ClusterIPs}
	for number := 1; number <= options.Nodes; number++ {
		network, err := newNodeNetwork(options.World, number, options.Nodes)
		if err != nil {
			return nil, err
		}
		node := &node{
			name: nodeName(number), number: number, client: client, network: network, images: options.Images,
			apiserverCA: ca, directory: filepath.Join(options.State, "nodes", nodeName(number)),
			pods: map[string]*pod{},
		}
		if cgroups != "" {
			node.cgroup = filepath.Join(cgroups, options.World, node.name)
		}
		if err := node.prepare(); err != nil {
			return nil, err
		}
		c.nodes[node.name] = node
	}
	if err := routeToNodes(options.Nodes); err != nil {
		return nil, err
	}
	for _, node := range c.nodes {
		if err := node.serve(ctx); err != nil {
			return nil, err
		}
		if err := node.register(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// serve hands pods to their nodes until the context ends, and then ends them all.
func (c *cluster) serve(ctx context.Context) error {
	bound := fields.OneTermNotEqualSelector("spec.nodeName", "").String()
	boundPods := informers.NewSharedInformerFactoryWithOptions(c.client, 0,
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.FieldSelector = bound }))
	informer := boundPods.Core().V1().Pods().Informer()
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { c.sync(ctx, object.(*corev1.Pod)) },
		UpdateFunc: func(_, object any) { c.sync(ctx, object.(*corev1.Pod)) },
		DeleteFunc: func(object any) {
			if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = unknown.Obj
			}
			if pod, ok := object.(*corev1.Pod); ok {
				c.gone(pod)
			}
		},
	})
	if err != nil {
		return err
	}
	everything := informers.NewSharedInformerFactory(c.client, 0)
	balancer, err := newBalancer(c, everything)
	if err != nil {
		return err
	}
	if err := balancer.serveClusterDNS(ctx); err != nil {
		return err
	}
	everything.Start(ctx.Done())
	go balancer.run(ctx)
	boundPods.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return errors.New("stopped before the pods were known")
	}
	slog.Info("nodes are ready", "nodes", len(c.nodes))
	<-ctx.Done()
	var stopped sync.WaitGroup
	for _, node := range c.nodes {
		stopped.Go(node.shutDown)
	}
	stopped.Wait()
	return nil
}

func (c *cluster) sync(ctx context.Context, spec *corev1.Pod) {
	if node := c.nodes[spec.Spec.NodeName]; node != nil {
		node.sync(ctx, spec)
	}
}

func (c *cluster) gone(spec *corev1.Pod) {
	if node := c.nodes[spec.Spec.NodeName]; node != nil {
		node.gone(spec)
	}
}
