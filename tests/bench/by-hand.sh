#!/usr/bin/env bash
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The backup of a VM by hand, on the node: what this collection does, without all that it watches over on the way.
#
#   by-hand.sh VM HUB FOLDER        by-hand.sh pgtest1 root@hub.example.com /backup/by-hand
#
# Wants govc, jq, nbdkit (with the vddk plugin for TRANSPORT=vddk), nbdcopy, ssh; on the hub qemu-img and qemu-nbd. The environment
# says where vCenter is: GOVC_URL=https://…, GOVC_USERNAME, GOVC_TLS_CA_CERTS, and PASSWORD_FILE (a file keeps it out of `ps`).
set -euo pipefail
vm=$1 hub=$2 folder=$3
transport=${TRANSPORT:-vddk} port=${PORT:-10300} vcenter=${GOVC_URL#https://}
GOVC_PASSWORD=$(<"$PASSWORD_FILE")
export GOVC_PASSWORD
work=$(mktemp -d)

# Before the snapshot the VM's disks still name the files that the snapshot is going to hold still.
govc device.info -json -vm "$vm" 'disk-*' |
  jq -r '.devices[] | [.key, .capacityInBytes, .backing.fileName] | @tsv' > "$work/disks"

# One snapshot for all disks, without memory. Whatever happens, it goes again.
govc snapshot.create -vm "$vm" -m=false by-hand
trap 'govc snapshot.remove -vm "$vm" by-hand; rm -rf "$work"' EXIT
machine=$(govc find -i / -type m -name "$vm") # VirtualMachine:vm-32
snapshot=$(govc object.collect -s "$machine" snapshot.currentSnapshot)

read_disk() { # path in the datastore, command that copies from "$uri": nbdkit serves the disk for as long as that runs
  if [ "$transport" = vddk ]; then
    nbdkit --readonly --unix - vddk libdir=/opt/sendense/vddk/current server="$vcenter" user="$GOVC_USERNAME" \
      password=+"$PASSWORD_FILE" thumbprint="$(thumbprint)" vm="moref=${machine#*:}" snapshot="${snapshot#*:}" transports=nbdssl:nbd file="$1" --run "$2"
  else
    local store=${1#[} file=${1#*] }
    nbdkit --readonly --unix - curl user="$GOVC_USERNAME" password=+"$PASSWORD_FILE" cainfo="$GOVC_TLS_CA_CERTS" \
      url="$GOVC_URL/folder/$(quoted "${file%.vmdk}-flat.vmdk")?dcPath=DC0&dsName=$(quoted "${store%%]*}")" --run "$2"
  fi
}

thumbprint() {
  openssl s_client -connect "$vcenter:443" < /dev/null 2> /dev/null | openssl x509 -noout -fingerprint -sha1 | cut -d = -f 2
}

quoted() {
  jq -rn --arg text "$1" '$text | @uri'
}

ssh "$hub" "mkdir -p '$folder'"
while IFS=$'\t' read -r key capacity path; do
  # On the hub an image, and qemu-nbd for it. ssh carries its port to a socket here, and has a session of its own: with a bare -N
  # each request would wait some 40 ms. The session lasts until its input ends, and takes qemu-nbd with it, cleanly.
  coproc session {
    ssh -L "$work/$key.sock:127.0.0.1:$port" "$hub" "
      set -e
      qemu-img create -q -f qcow2 '$folder/disk-$key.qcow2' $capacity
      qemu-nbd --fork --pid-file='$folder/pid' -f qcow2 -b 127.0.0.1 -p $port --persistent --shared=8 '$folder/disk-$key.qcow2'
      echo ready
      cat >/dev/null
      pid=\$(cat '$folder/pid')
      kill \$pid
      while kill -0 \$pid 2>/dev/null; do sleep 0.1; done"
  }
  # shellcheck disable=SC2154 # bash sets session_PID
  pid=$session_PID
  read -r _ready <&"${session[0]}"

  # A fresh image reads as zero, so zeroes need not travel.
  read_disk "$path" "nbdcopy --flush --destination-is-zero \"\$uri\" 'nbd+unix:///?socket=$work/$key.sock'"

  exec {session[1]}>&-
  wait "$pid"
done < "$work/disks"
