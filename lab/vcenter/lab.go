// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Config says where a lab's vCenter keeps its things and who may log in.
type Config struct {
	User, Password            string
	Address                   string // IP:PORT clients use
	Thumbprint                string // of the certificate, SHA-1 with colons
	Datastores, Guests, Truth string // folders
}

// Lab is one vCenter: the simulator's inventory, and what this program adds to it.
type Lab struct {
	Config
	service    *simulator.Service
	instance   uuid.UUID
	datacenter string // inventory path
	datastores map[string]types.ManagedObjectReference
	hosts      []*simulator.HostSystem // by name
	guestsMu   sync.RWMutex
	guests     []*guest
	knobs      knobs
	stats      stats
}

// NewLab makes the inventory and opens the disks.
func NewLab(config Config) (*Lab, error) {
	for _, folder := range []*string{&config.Datastores, &config.Guests, &config.Truth} {
		absolute, err := filepath.Abs(*folder)
		if err != nil {
			return nil, err
		}
		*folder = absolute
	}
	lab := &Lab{
		Config: config,
		// Derived from the folder: the same lab is the same vCenter after a restart, another lab is another one.
		instance: uuid.NewSHA1(uuid.NameSpaceURL, []byte("file://"+config.Datastores)),
		knobs:    knobs{values: defaultKnobs()},
	}
	for _, dir := range []string{config.Datastores, config.Truth} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := lab.build(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	sessions := lab.service.Context.Map.SessionManager()
	sessions.ValidLogin = lab.validLogin
	sessions.ServiceHostName = config.Address
	lab.service.Listen = &url.URL{Scheme: "https", Host: config.Address, User: url.UserPassword(config.User, config.Password)}
	// From here on every call passes through us.
	lab.service.Context.Map.Handler = lab.dispatch
	return lab, nil
}

// Close lets go of the disks' files.
func (l *Lab) Close() error {
	var err error
	for _, g := range l.known() {
		for _, disk := range g.disks {
			err = errors.Join(err, disk.Close())
		}
	}
	return err
}

// Handler serves the API and the datastore browser.
func (l *Lab) Handler() http.Handler {
	l.service.RegisterSDK(l.service.Context.Map, "/sdk/vimService")
	mux := l.service.ServeMux
	mux.HandleFunc("/sdk/vimServiceVersions.xml", l.service.ServiceVersions)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not through the mux: it would redirect paths that it thinks are unclean.
		switch {
		case strings.HasPrefix(r.URL.Path, folderPrefix):
			l.serveFolder(w, r)
			return
		case strings.HasPrefix(r.URL.Path, leasePrefix):
			l.serveLease(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// guest returns the VM with that name, moref or inventory path.
func (l *Lab) guest(wish string) (*guest, error) {
	var known, found []*guest
	for _, g := range l.known() {
		switch wish {
		case g.vm.Self.Value, g.path:
			return g, nil
		case g.name:
			found = append(found, g)
		}
		known = append(known, g)
	}
	say := func(guests []*guest, of func(*guest) string) string {
		var words []string
		for _, g := range guests {
			words = append(words, of(g))
		}
		return strings.Join(words, ", ")
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("no VM is named %q; there are: %s", wish, say(known, func(g *guest) string { return g.name }))
	}
	return nil, fmt.Errorf("%d VMs are named %q: say which by path: %s", len(found), wish, say(found, func(g *guest) string { return g.path }))
}

// known returns the VMs that there are now.
func (l *Lab) known() []*guest {
	l.guestsMu.RLock()
	defer l.guestsMu.RUnlock()
	return slices.Clone(l.guests)
}

// guestByRef returns the VM with that reference, nil for one that is not in the inventory.
func (l *Lab) guestByRef(ref types.ManagedObjectReference) *guest {
	for _, g := range l.known() {
		if g.vm.Self == ref && !g.gone.Load() {
			return g
		}
	}
	return nil
}

// fresh returns a context that holds none of the simulator's locks.
func (l *Lab) fresh() *simulator.Context {
	base := l.service.Context
	return &simulator.Context{Context: context.Background(), Session: base.Session, Map: base.Map}
}
