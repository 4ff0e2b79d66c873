#!/bin/bash
# Makes one node: k3s (a server on node1, an agent on the others), the addresses of gateways, and the agent's image.
# Running it again changes nothing that is as it should be.
set -euo pipefail

: "${NODE_NAME:?}" "${NODE_ADDRESS:?}" "${SERVER_ADDRESS:?}" "${K3S_VERSION:?}" "${K3S_TOKEN:?}"

apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates curl iproute2

# Addresses of the platform's pool are every node's own: whoever asks is answered by the agent of the node that the packet reaches.
cat > /etc/systemd/system/cardinal-addresses.service <<UNIT
[Unit]
Description=Addresses of gateways
After=network-online.target
Before=k3s.service k3s-agent.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip route replace local 192.168.57.80/29 dev lo

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --now cardinal-addresses.service

# host-gw routes between the nodes without a tunnel, so that a packet's addresses are the pods' own. k3s' own policy engine and
# ingress would do a part of the agent's work a second time.
interface=$(ip -o -4 addr show | awk -v address="$NODE_ADDRESS/" 'index($4, address) == 1 { print $2 }')
common="--node-ip $NODE_ADDRESS --flannel-iface $interface"
if [ "$NODE_ADDRESS" = "$SERVER_ADDRESS" ]; then
    export INSTALL_K3S_EXEC="server $common --flannel-backend host-gw --disable-network-policy --disable traefik --disable servicelb --write-kubeconfig-mode 644"
else
    export K3S_URL="https://$SERVER_ADDRESS:6443"
    export INSTALL_K3S_EXEC="agent $common"
fi
export K3S_TOKEN INSTALL_K3S_VERSION="$K3S_VERSION"
curl -sfL https://get.k3s.io | sh -

until k3s ctr version > /dev/null 2>&1; do sleep 1; done
k3s ctr images import /tmp/cardinal-agent.tar
if [ "$NODE_ADDRESS" = "$SERVER_ADDRESS" ]; then
    until kubectl get node "$NODE_NAME" > /dev/null 2>&1; do sleep 1; done
    kubectl wait --for=condition=Ready "node/$NODE_NAME" --timeout=180s
    mkdir -p /opt/cardinal
    cp -r /tmp/cardinal/deploy /tmp/cardinal/cluster /opt/cardinal/
    /opt/cardinal/cluster/install.sh
fi
