// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
)

// Control serves the control API. README.md lists it; names are interface.
func (l *Lab) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /vms", l.getVMs)
	mux.HandleFunc("POST /guest/write", l.guestWrite)
	mux.HandleFunc("GET /guest/read", l.guestRead)
	mux.HandleFunc("GET /snapshots", l.getSnapshots)
	mux.HandleFunc("GET /truth", l.getTruth)
	mux.HandleFunc("GET /stats", l.getStats)
	mux.HandleFunc("POST /stats/reset", func(w http.ResponseWriter, _ *http.Request) {
		l.stats.reset()
		answer(w, map[string]any{})
	})
	mux.HandleFunc("POST /sessions/kill", func(w http.ResponseWriter, r *http.Request) {
		var request struct{ Key string }
		if err := decode(r, &request); err != nil {
			refuse(w, err)
			return
		}
		answer(w, map[string]any{"killed": l.killSessions(request.Key)})
	})
	mux.HandleFunc("POST /cbt", l.setTracking)
	mux.HandleFunc("POST /vm", l.setVM)
	mux.HandleFunc("POST /disk", l.setDisk)
	mux.HandleFunc("GET /knob", func(w http.ResponseWriter, _ *http.Request) { answer(w, l.knobs.get()) })
	mux.HandleFunc("POST /knob", func(w http.ResponseWriter, r *http.Request) {
		if err := l.knobs.set(r.Body); err != nil {
			refuse(w, err)
			return
		}
		l.refreshFree()
		answer(w, l.knobs.get())
	})
	return mux
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	answer(w, map[string]string{"error": err.Error()})
}

// decode reads a JSON body; an empty one leaves the value as it is.
func decode(r *http.Request, value any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// place reads which disk and where from a query, and the number named length.
func (l *Lab) place(query url.Values, length string) (d *disk, offset, count int64, err error) {
	g, err := l.guest(query.Get("vm"))
	if err != nil {
		return nil, 0, 0, err
	}
	key, err := strconv.ParseInt(query.Get("key"), 10, 32)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("key: %w", err)
	}
	if d = g.disk(int32(key)); d == nil {
		return nil, 0, 0, fmt.Errorf("%s has no disk with key %d", g.name, key)
	}
	if offset, err = strconv.ParseInt(query.Get("offset"), 10, 64); err != nil {
		return nil, 0, 0, fmt.Errorf("offset: %w", err)
	}
	if query.Has(length) {
		if count, err = strconv.ParseInt(query.Get(length), 10, 64); err != nil || count < 0 {
			return nil, 0, 0, fmt.Errorf("%s: %q is not a number of bytes", length, query.Get(length))
		}
	}
	return d, offset, count, nil
}

func (l *Lab) guestWrite(w http.ResponseWriter, r *http.Request) {
	d, offset, zeros, err := l.place(r.URL.Query(), "zero")
	written := zeros
	if err == nil && r.URL.Query().Has("zero") {
		err = d.Zero(offset, zeros)
	} else if err == nil {
		// In pieces: a body may be larger than anybody wants to hold in memory.
		written, err = io.CopyBuffer(io.NewOffsetWriter(d, offset), struct{ io.Reader }{r.Body}, make([]byte, 1<<20))
	}
	if err != nil {
		refuse(w, err)
		return
	}
	l.refreshFree()
	answer(w, map[string]any{"written": written})
}

func (l *Lab) guestRead(w http.ResponseWriter, r *http.Request) {
	d, offset, length, err := l.place(r.URL.Query(), "length")
	if err == nil && (offset < 0 || length > d.Size()-offset) {
		err = fmt.Errorf("%d bytes at %d reach beyond the disk's %d", length, offset, d.Size())
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	_, _ = io.Copy(w, io.NewSectionReader(d, offset, length))
}

func (l *Lab) getSnapshots(w http.ResponseWriter, r *http.Request) {
	found := []map[string]any{}
	var only *guest
	if wanted := r.URL.Query().Get("vm"); wanted != "" {
		var err error
		if only, err = l.guest(wanted); err != nil {
			refuse(w, err)
			return
		}
	}
	for _, g := range l.known() {
		if only != nil && only != g {
			continue
		}
		g.mu.Lock()
		for _, one := range g.snapshots {
			found = append(found, map[string]any{
				"vm": g.name, "name": one.name, "description": one.description, "moref": one.ref.Value,
				"created": one.created, "quiesced": one.quiesced, "truth": one.truth,
			})
		}
		g.mu.Unlock()
	}
	answer(w, map[string]any{"snapshots": found})
}

func (l *Lab) getTruth(w http.ResponseWriter, r *http.Request) {
	g, err := l.guest(r.URL.Query().Get("vm"))
	if err != nil {
		refuse(w, err)
		return
	}
	truth, err := g.truth(r.URL.Query().Get("snapshot"))
	if err == nil && r.URL.Query().Get("sha256") == "1" {
		for i := range truth.Disks {
			if truth.Disks[i].SHA256, err = digest(filepath.Join(truth.Folder, truth.Disks[i].File)); err != nil {
				break
			}
		}
	}
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, truth)
}

func digest(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{file}, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
