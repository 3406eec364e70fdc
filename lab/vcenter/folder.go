// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const folderPrefix = "/folder/"

// serveFolder is vCenter's datastore browser: /folder/<path>?dcPath=<datacenter>&dsName=<datastore>.
func (l *Lab) serveFolder(w http.ResponseWriter, r *http.Request) {
	sleep(l.knobs.get().FolderLatencyMS)
	out := &meter{ResponseWriter: w, lab: l}
	l.stats.Lock()
	l.stats.folderCalls++
	l.stats.Unlock()
	if !l.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(out, "not logged in", http.StatusUnauthorized)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(out, "the lab's datastores are read-only here", http.StatusMethodNotAllowed)
		return
	}
	path, err := l.resolve(r.URL)
	if err != nil {
		http.Error(out, err.Error(), http.StatusNotFound)
		return
	}
	of, d := l.owner(path)
	if d != nil && d.missing() != nil {
		http.Error(out, "no such file", http.StatusNotFound)
		return
	}
	out.disk = d
	if d != nil && d.LiveExtent() == path && of.running() {
		// ESXi answers 500 for a file that a running VM has open for writing.
		http.Error(out, "the file is locked by a running VM", http.StatusInternalServerError)
		return
	}
	file, err := os.Open(path)
	if err != nil {
		http.Error(out, "no such file", http.StatusNotFound)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.Error(out, "no such file", http.StatusNotFound)
		return
	}
	// Without a type the server would read the first bytes to guess one.
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(out, r, "", info.ModTime(), file)
}

// resolve returns the file on this host that a URL means. Its path is decoded once; dcPath and dsName may
// be encoded once more, as clients do for names with a slash or a space in them.
func (l *Lab) resolve(from *url.URL) (string, error) {
	query := from.Query()
	if dc := query.Get("dcPath"); !spells(dc, strings.TrimPrefix(l.datacenter, "/")) && !spells(dc, l.datacenter) {
		return "", fmt.Errorf("no datacenter %q", dc)
	}
	for name := range l.datastores {
		if !spells(query.Get("dsName"), name) {
			continue
		}
		path := strings.TrimPrefix(from.Path, folderPrefix)
		if !filepath.IsLocal(path) {
			return "", errors.New("no such file")
		}
		return filepath.Join(l.Datastores, name, path), nil
	}
	return "", fmt.Errorf("no datastore %q", query.Get("dsName"))
}

// spells says whether a value is that name, plain or encoded.
func spells(value, name string) bool {
	decoded, err := url.PathUnescape(value)
	return value == name || err == nil && decoded == name
}

// owner returns the VM and the disk that a file belongs to, nil for one that is no disk's.
func (l *Lab) owner(path string) (*guest, *disk) {
	for _, g := range l.known() {
		for _, d := range g.disks {
			if filepath.Dir(path) != d.Dir {
				continue
			}
			for _, files := range d.Files(d.Top()) {
				if path == files.Descriptor || path == files.Extent {
					return g, d
				}
			}
		}
	}
	return nil, nil
}

// running says whether the VM holds its files open.
func (g *guest) running() bool {
	return !g.gone.Load() && g.runtime().PowerState == types.VirtualMachinePowerStatePoweredOn
}

// meter counts what goes out and holds it back as the knob says.
type meter struct {
	http.ResponseWriter
	lab  *Lab
	disk *disk // whose file it is, nil for none
}

func (m *meter) Write(p []byte) (int, error) {
	if m.disk != nil {
		if err := m.disk.missing(); err != nil {
			return 0, err // in mid-answer: the connection ends short of what was promised
		}
	}
	n, err := m.ResponseWriter.Write(p)
	m.lab.stats.Lock()
	m.lab.stats.folderOut += int64(n)
	m.lab.stats.Unlock()
	m.lab.knobs.pass(int64(n), time.Time{}, func(k Knobs) int64 { return k.FolderBytesPerSecond })
	return n, err
}

// datastoreMethods are the calls to a datastore that we answer.
type datastoreMethods struct {
	Self types.ManagedObjectReference
	lab  *Lab
}

// Reference makes it an object that the simulator can dispatch to.
func (d *datastoreMethods) Reference() types.ManagedObjectReference { return d.Self }

// RefreshDatastore measures the files; the simulator's own would claim that nothing is used.
func (d *datastoreMethods) RefreshDatastore(*simulator.Context, *types.RefreshDatastore) soap.HasFault {
	// In its own time: the caller holds the datastore's lock.
	go d.lab.refreshFree()
	return &methods.RefreshDatastoreBody{Res: new(types.RefreshDatastoreResponse)}
}
