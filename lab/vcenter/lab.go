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
	Datastores, Guests, Truth string // folders
}

// Lab is one vCenter: the simulator's inventory, and what this program adds to it.
type Lab struct {
	Config
	service    *simulator.Service
	instance   uuid.UUID
	datacenter string // inventory path
	datastores map[string]types.ManagedObjectReference
	guests     []*guest
	knobs      knobs
	stats      stats

	// sizes is held where datastores' sizes change and where the simulator measures a VM's files, for which it reads
	// datastores without their lock.
	sizes sync.Mutex
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
	for _, g := range l.guests {
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
		if strings.HasPrefix(r.URL.Path, folderPrefix) {
			l.serveFolder(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// guest returns the VM with that name.
func (l *Lab) guest(name string) (*guest, error) {
	var known []string
	for _, g := range l.guests {
		if g.name == name {
			return g, nil
		}
		known = append(known, g.name)
	}
	return nil, fmt.Errorf("no VM is named %q; there are: %s", name, strings.Join(known, ", "))
}

// guestByRef returns the VM with that reference, nil for one that is not ours.
func (l *Lab) guestByRef(ref types.ManagedObjectReference) *guest {
	for _, g := range l.guests {
		if g.vm.Self == ref {
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

type stats struct {
	sync.Mutex
	soap                   map[string]int
	logins, failed         int
	folderCalls, folderOut int64
}

func (s *stats) count(method string) {
	s.Lock()
	defer s.Unlock()
	if s.soap == nil {
		s.soap = map[string]int{}
	}
	s.soap[method]++
}

func (s *stats) reset() {
	s.Lock()
	defer s.Unlock()
	s.soap, s.logins, s.failed, s.folderCalls, s.folderOut = nil, 0, 0, 0, 0
}
