#!/bin/bash
# Installs Cardinal in the cluster of this machine: the kinds of the Gateway API, deploy/ as it is, the platform and the pods of two cells.
# A DaemonSet has a pod on a node as soon as that node is there, so it does not matter which nodes are.
set -euo pipefail

GATEWAY_API=v1.6.1
here=$(cd "$(dirname "$0")" && pwd)

kubectl apply --server-side -f "https://github.com/kubernetes-sigs/gateway-api/releases/download/$GATEWAY_API/standard-install.yaml"
kubectl apply --server-side -k "$here/../deploy"
kubectl wait --for=condition=Established --timeout=60s crd/cells.cardinal.dev crd/platforms.cardinal.dev
dns=$(kubectl get service -n kube-system kube-dns -o jsonpath='{.spec.clusterIP}')
until kubectl wait -n kube-system -l k8s-app=kube-dns --for=condition=Ready pod --timeout=180s; do sleep 2; done
pod=$(kubectl get pods -n kube-system -l k8s-app=kube-dns -o jsonpath='{.items[0].status.podIP}')
sed -e "s/DNS_SERVICE/$dns/" -e "s/DNS_POD/$pod/" "$here/platform.yaml" | kubectl apply --server-side -f -
kubectl apply --server-side -f "$here/workloads.yaml"
kubectl rollout status -n cardinal-system daemonset/cardinal-agent --timeout=180s
