#!/bin/sh
# Writes the agents' documents into the ConfigMap `cardinal-documents`, with the addresses that the pods have now.
# These agents read a folder and do not watch the cluster (--kubernetes does), so somebody has to say which addresses a component
# has: run this again when a pod was made anew. The agents notice the changed ConfigMap themselves.
set -eu

address() { # namespace, pod
    kubectl wait --for=condition=Ready "pod/$2" -n "$1" --timeout=180s >&2
    kubectl get pod "$2" -n "$1" -o jsonpath='{.status.podIP}'
}

ledger=$(address dp-acme-bank-prod ledger)
orders=$(address dp-acme-shop-prod orders)
web=$(address dp-acme-shop-prod web)
dns=$(kubectl get pods -n kube-system -l k8s-app=kube-dns -o jsonpath='{.items[0].status.podIP}')
dns_service=$(kubectl get service -n kube-system kube-dns -o jsonpath='{.spec.clusterIP}')

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/platform.yaml" <<DOCUMENT
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform, namespace: platform }
spec:
  environments: [{ name: prod, dnsPrefix: prod }]
  virtualHosts: { organization: internal.example.test }
  gateways:
    internal: { gatewayRef: { namespace: platform, name: gateway-internal }, remoteAddresses: ["192.168.57.11", "192.168.57.12"] }
  dns: { addresses: ["$dns"], serviceAddresses: ["$dns_service"] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: gateway-internal, namespace: platform }
spec:
  gatewayClassName: cardinal
  addresses: [{ type: IPAddress, value: 192.168.57.81 }]
  listeners:
    - { name: internal, hostname: "*.internal.example.test", port: 80, protocol: HTTP, allowedRoutes: { namespaces: { from: All } } }
DOCUMENT

cat > "$folder/cell-shop.yaml" <<DOCUMENT
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop-prod, namespace: dp-acme-shop-prod }
spec:
  organization: acme
  project: shop
  environment: prod
  intra: open
  components:
    - { name: orders, type: Service, workloads: { addresses: ["$orders"] } }
    - { name: web, type: Service, workloads: { addresses: ["$web"] } }
  egress:
    east: [{ from: [orders], project: bank, component: ledger, endpoint: api }]
DOCUMENT

cat > "$folder/cell-bank.yaml" <<DOCUMENT
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: bank-prod, namespace: dp-acme-bank-prod }
spec:
  organization: acme
  project: bank
  environment: prod
  intra: open
  components:
    - name: ledger
      type: Service
      workloads: { addresses: ["$ledger"] }
      endpoints: [{ name: api, type: HTTP, port: 8080, visibility: { organization: {} } }]
DOCUMENT

/opt/cardinal/bin/cardinal-agent validate "$folder"
kubectl create configmap cardinal-documents -n cardinal --from-file="$folder" --dry-run=client -o yaml | kubectl apply -f -
kubectl rollout status -n cardinal daemonset/cardinal-agent --timeout=180s
