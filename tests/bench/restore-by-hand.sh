#!/usr/bin/env bash
# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The restore of a VM into vCenter by hand, on the node: what this collection does by an import, without all that it watches over.
#
#   restore-by-hand.sh NAME HUB POINT FOLDER DATASTORE
#   restore-by-hand.sh web1-again root@hub.example.com /backup/repository/vms/UUID/20261123T140102Z /DC0/vm/prod datastore1
#
# Wants govc, jq, ssh; on the hub qemu-img and python3-vmdkstream, and room for the disks twice. The environment says where vCenter
# is: GOVC_URL=https://…, GOVC_USERNAME, GOVC_TLS_CA_CERTS, and PASSWORD_FILE (a file keeps it out of `ps`).
set -euo pipefail
name=$1 hub=$2 point=$3 folder=$4 datastore=$5
GOVC_PASSWORD=$(<"$PASSWORD_FILE")
export GOVC_PASSWORD
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
ssh "$hub" "cat '$point/manifest.json'" > "$work/manifest.json"

ask() {
  jq -r "$1" "$work/manifest.json"
}

# qemu-img writes a stream-optimized VMDK too, but with its tables in front, where vSphere's reader of streams wants them behind.
fetch() { # key of a disk
  ssh "$hub" "
    set -e
    work=\$(mktemp -d -p /backup)
    trap 'rm -rf \"\$work\"' EXIT
    qemu-img convert -f qcow2 -O raw '$point/disk-$1.qcow2' \"\$work/raw\"
    python3 -m VMDKstream \"\$work/raw\" \"\$work/vmdk\"
    cat \"\$work/vmdk\"" > "$work/disk-$1.vmdk"
}

# zlib takes a core for itself, so the disks are made beside each other.
fetches=()
for key in $(ask '.disks[].key'); do
  fetch "$key" &
  fetches+=($!)
done
for each in "${fetches[@]}"; do
  wait "$each"
done
echo "the disks were on the node after $SECONDS s"

# What the VM was, as far as an OVF with one SCSI controller and one network needs to say it.
files='' disks='' drives=''
while IFS=$'\t' read -r key size unit; do
  file=disk-$key.vmdk
  files+="<File ovf:href='$file' ovf:id='file$key' ovf:size='$(stat -c %s "$work/$file")'/>"
  disks+="<Disk ovf:capacity='$size' ovf:capacityAllocationUnits='byte' ovf:diskId='disk$key' ovf:fileRef='file$key'
    ovf:format='http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized'/>"
  drives+="<Item><rasd:AddressOnParent>$unit</rasd:AddressOnParent><rasd:ElementName>Hard disk $key</rasd:ElementName>
    <rasd:HostResource>ovf:/disk/disk$key</rasd:HostResource><rasd:InstanceID>$key</rasd:InstanceID>
    <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
done < <(ask '.disks[] | [.key, .provisioned, .unit_number] | @tsv')
network=$(ask '.vm.config.nics[0].network')
cat > "$work/vm.ovf" << END
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>$files</References>
  <DiskSection><Info>Disks</Info>$disks</DiskSection>
  <NetworkSection><Info>Networks</Info><Network ovf:name="$network"><Description>$network</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="$name">
    <Info>A VM</Info>
    <OperatingSystemSection ovf:id="1" vmw:osType="$(ask .vm.config.guest_id)"><Info>Its system</Info></OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Its hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemType>$(ask .vm.config.version)</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:ElementName>processors</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>$(ask .vm.config.cpus)</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ElementName>memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>$(ask .vm.config.memory_mib)</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address><rasd:ElementName>SCSI controller 0</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:Connection>$network</rasd:Connection><rasd:ElementName>network card</rasd:ElementName><rasd:InstanceID>4</rasd:InstanceID>
        <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType><rasd:ResourceType>10</rasd:ResourceType>
      </Item>
      $drives
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
END
jq -n --arg network "$network" '{DiskProvisioning: "thin", NetworkMapping: [{Name: $network, Network: $network}]}' |
  govc import.ovf -options=- -name="$name" -folder="$folder" -ds="$datastore" "$work/vm.ovf"
