// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package storage

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// noParent is what a descriptor says as parentCID when the disk has none.
const noParent = 0xffffffff

// descriptor is the small text file that a VM's configuration names: it says where the bytes are.
type descriptor struct {
	cid, parentCID uint32
	sectors        int64
	extent         string // file name beside the descriptor
	parent         string // descriptor's file name, empty for a base
	adapter, uuid  string
}

func (d descriptor) write(path string) error {
	kind, access := "vmfs", "VMFS"
	hint := ""
	if d.parent != "" {
		kind, access = "vmfsSparse", "VMFSSPARSE"
		hint = fmt.Sprintf("parentFileNameHint=%q\n", d.parent)
	}
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=%08x
createType="%s"
%s
# Extent description
RW %d %s "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "%s"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "1"
ddb.toolsVersion = "12389"
ddb.uuid = "%s"
ddb.virtualHWVersion = "19"
`, d.cid, d.parentCID, kind, hint, d.sectors, access, d.extent, d.adapter, d.sectors/(255*63), ddbUUID(d.uuid))
	// A new file renamed over the old one: nobody ever reads half a descriptor.
	next := path + ".new"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// ddbUUID spells a uuid as descriptors do: "60 00 C2 9b d2 …-2f …".
func ddbUUID(uuid string) string {
	digits := strings.ReplaceAll(uuid, "-", "")
	var out strings.Builder
	for i := 0; i+2 <= len(digits); i += 2 {
		switch {
		case i == 16:
			out.WriteByte('-')
		case i > 0:
			out.WriteByte(' ')
		}
		out.WriteString(digits[i : i+2])
	}
	return out.String()
}

// parentOf returns the parent's file name that a descriptor states, empty for a base.
func parentOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if hint, found := strings.CutPrefix(lines.Text(), "parentFileNameHint="); found {
			return strings.Trim(hint, `"`), nil
		}
	}
	return "", lines.Err()
}
