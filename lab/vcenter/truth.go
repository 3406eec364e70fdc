// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Truth is what a VM's disks held at the moment of a snapshot. Its JSON is interface: README.md.
type Truth struct {
	VM       string      `json:"vm"`
	Snapshot string      `json:"snapshot"`
	Moref    string      `json:"moref"`
	Created  time.Time   `json:"created"`
	Disks    []TruthDisk `json:"disks"`
	Folder   string      `json:"folder,omitempty"` // only in answers
}

// TruthDisk is one disk of a Truth.
type TruthDisk struct {
	Key      int32  `json:"key"`
	Label    string `json:"label"`
	Capacity int64  `json:"capacity"`
	File     string `json:"file"`
	Path     string `json:"path"`
	SHA256   string `json:"sha256,omitempty"`
}

// truthFile is the newest copy of a disk, and how often the guest had written by then.
type truthFile struct {
	path   string
	writes uint64
}

// keepTruth copies the frozen disks aside. The folder appears under its name when it is complete.
func (g *guest) keepTruth(one *snapshot) (err error) {
	home := filepath.Join(g.lab.Truth, g.files)
	wanted := strings.ReplaceAll(one.name, "/", "%2F")
	name := wanted
	for n := 2; name == "" || name[0] == '.' || name == "latest" || exists(filepath.Join(home, name)); n++ {
		name = fmt.Sprintf("%s~%d", strings.TrimLeft(wanted, "."), n)
	}
	folder, partial := filepath.Join(home, name), filepath.Join(home, name+".partial")
	if err := errors.Join(os.RemoveAll(partial), os.MkdirAll(partial, 0o700)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(partial)
		}
	}()
	truth := Truth{VM: g.name, Snapshot: one.name, Moref: one.ref.Value, Created: one.created}
	kept := map[int32]truthFile{}
	for _, d := range g.dependent() {
		frozen := one.frozen[d.key]
		file := fmt.Sprintf("disk-%d.raw", d.key)
		target := filepath.Join(partial, file)
		last, known := g.truths[d.key]
		if !known || last.writes != frozen.Writes() || os.Link(last.path, target) != nil {
			if err := d.Export(frozen, target); err != nil {
				return fmt.Errorf("keeping the truth: %w", err)
			}
		}
		kept[d.key] = truthFile{filepath.Join(folder, file), frozen.Writes()}
		truth.Disks = append(truth.Disks, TruthDisk{
			Key: d.key, Label: d.label, Capacity: d.Size(), File: file, Path: d.spell(d.Names(frozen)[0]),
		})
	}
	text, err := json.MarshalIndent(truth, "", "  ")
	if err != nil {
		return err
	}
	link := filepath.Join(home, ".latest")
	if err := errors.Join(
		os.WriteFile(filepath.Join(partial, "truth.json"), append(text, '\n'), 0o600),
		os.Rename(partial, folder),
		os.RemoveAll(link), os.Symlink(name, link), os.Rename(link, filepath.Join(home, "latest")),
	); err != nil {
		return err
	}
	one.truth, g.truths = folder, kept
	return nil
}

// truth returns what was kept for a snapshot by name, or for the newest.
func (g *guest) truth(snapshot string) (*Truth, error) {
	folder := filepath.Join(g.lab.Truth, g.files, "latest")
	if snapshot != "" {
		folder = filepath.Join(g.lab.Truth, g.files, strings.ReplaceAll(snapshot, "/", "%2F"))
	}
	folder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return nil, fmt.Errorf("no truth of %s was kept: %w", g.name, err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "truth.json"))
	if err != nil {
		return nil, err
	}
	truth := &Truth{}
	if err := json.Unmarshal(text, truth); err != nil {
		return nil, err
	}
	truth.Folder = folder
	return truth, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
