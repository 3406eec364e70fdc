// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"sendense.example/lab/vcenter/storage"
)

// Port 902 speaks to lab/vddk, the stand-in for VMware's disk library. README.md describes the protocol: it is our own and has
// only the place in common with VMware's NFC.

const (
	nfcGreeting = "lab-nfc 1"
	nfcLongest  = 32 << 20 // bytes of one read
	nfcPatience = time.Minute

	nfcRead      = 1
	nfcAllocated = 2
	nfcWrite     = 3
	nfcFlush     = 4
)

// Error codes of VixDiskLib, as lab/vddk passes them on.
const (
	vixFail         = 1
	vixInvalid      = 3
	vixFileNotFound = 4
	vixUnsupported  = 6
	vixNoSpace      = 8
	vixNoAccess     = 13
	vixPermissions  = 3014
	vixRefused      = 14009
	vixCannot       = 18000
)

// nfcError is a refusal: VixDiskLib's code, and the details that the library would log.
type nfcError struct {
	code uint32
	text string
}

func (e *nfcError) Error() string { return e.text }

func refusal(code uint32, format string, values ...any) error {
	return &nfcError{code, fmt.Sprintf(format, values...)}
}

// ServeNFC serves disks until the listener is closed.
func (l *Lab) ServeNFC(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			l.serveDisk(conn)
		}()
	}
}

// serveDisk is one connection: a login, then one disk.
func (l *Lab) serveDisk(conn net.Conn) {
	in := bufio.NewReader(conn)
	_ = conn.SetReadDeadline(time.Now().Add(nfcPatience))
	login, err := nfcLogin(in)
	var g *guest
	if err == nil {
		g, err = l.admit(login)
	}
	if !nfcAnswer(conn, err, "ok") {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	wish, err := in.ReadString('\n')
	if err != nil {
		return // it wanted to know whether it may log in
	}
	wish = strings.TrimSuffix(wish, "\n")
	var open *openDisk
	if strings.HasPrefix(wish, "open rw ") {
		open, err = g.openWritable(login["snapshot"], strings.TrimPrefix(wish, "open rw "))
	} else {
		open, err = g.openFrozen(login["snapshot"], wish)
	}
	if err == nil {
		err = l.stats.openDisk(l.knobs.get().NFCDisks)
	}
	if err != nil {
		nfcAnswer(conn, err, "")
		return
	}
	defer l.stats.closeDisk()
	if !nfcAnswer(conn, nil, fmt.Sprintf("ok %d", open.disk.Size())) {
		return
	}
	open.serve(in, conn)
}

// nfcLogin reads the lines "name value" up to an empty one.
func nfcLogin(in *bufio.Reader) (map[string]string, error) {
	greeting, err := in.ReadString('\n')
	if err != nil || greeting != nfcGreeting+"\n" {
		return nil, refusal(vixCannot, "expected %q, not %q", nfcGreeting, greeting)
	}
	fields := map[string]string{}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, refusal(vixCannot, "the login is not complete")
		}
		if line == "\n" {
			return fields, nil
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		fields[name] = value
	}
}

// admit returns the VM that a login asks for.
func (l *Lab) admit(login map[string]string) (*guest, error) {
	if login["thumbprint"] != l.Thumbprint {
		return nil, refusal(vixCannot, "the certificate of %s has thumbprint %s, not %s", l.Address, l.Thumbprint, login["thumbprint"])
	}
	if login["user"] != l.User || login["password"] != l.Password {
		return nil, refusal(vixPermissions, "Cannot complete login due to an incorrect user name or password.")
	}
	g := l.guestByRef(types.ManagedObjectReference{Type: "VirtualMachine", Value: login["vm"]})
	if g == nil {
		return nil, refusal(vixInvalid, "there is no VM %s", login["vm"])
	}
	return g, nil
}

// nfcAnswer says ok, or why not; it returns whether the talk goes on.
func nfcAnswer(out io.Writer, err error, ok string) bool {
	if err == nil {
		_, err = fmt.Fprintln(out, ok)
		return err == nil
	}
	code, text := nfcCode(err)
	_, _ = fmt.Fprintf(out, "error %d %s\n", code, strings.ReplaceAll(text, "\n", " "))
	return false
}

func nfcCode(err error) (uint32, string) {
	var known *nfcError
	if errors.As(err, &known) {
		return known.code, known.text
	}
	return vixFail, err.Error()
}

// openDisk is a disk opened as a snapshot froze it, or without a snapshot and for writing.
type openDisk struct {
	guest    *guest
	snapshot *snapshot
	disk     *disk
	layer    *storage.Layer
}

// openWritable opens the disk of a VM that does not run and has no snapshot.
func (g *guest) openWritable(snapshot, path string) (*openDisk, error) {
	if snapshot != "" {
		return nil, refusal(vixNoAccess, "%s is frozen by %s and cannot be written to", path, snapshot)
	}
	if g.running() {
		return nil, refusal(vixNoAccess, "%s is locked by a running VM", path)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.snapshots) > 0 {
		return nil, refusal(vixNoAccess, "%s stands on a snapshot", path)
	}
	for _, d := range g.disks {
		if d.missing() == nil && d.spell(d.Names(d.Top())[0]) == path {
			return &openDisk{guest: g, disk: d, layer: d.Top()}, nil
		}
	}
	return nil, refusal(vixFileNotFound, "%s is no disk of %s", path, g.name)
}

// openFrozen understands "open ro [datastore] folder/disk.vmdk", the path as the snapshot's configuration has it.
func (g *guest) openFrozen(snapshot, wish string) (*openDisk, error) {
	verb, rest, _ := strings.Cut(wish, " ")
	mode, path, _ := strings.Cut(rest, " ")
	switch {
	case verb != "open":
		return nil, refusal(vixInvalid, "%q is no request", verb)
	case mode != "ro":
		return nil, refusal(vixUnsupported, "%q is neither ro nor rw", mode)
	case snapshot == "":
		return nil, refusal(vixNoAccess, "%s is locked by a running VM: only what a snapshot froze can be opened", path)
	}
	of := g.snapshot(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: snapshot})
	if of == nil {
		return nil, refusal(vixFileNotFound, "%s has no snapshot %s", g.name, snapshot)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.disks {
		if layer := of.frozen[d.key]; layer != nil && d.missing() == nil && d.spell(d.Names(layer)[0]) == path {
			return &openDisk{guest: g, snapshot: of, disk: d, layer: layer}, nil
		}
	}
	return nil, refusal(vixFileNotFound, "%s is no disk of snapshot %s", path, snapshot)
}

// serve answers requests one after the other until the client hangs up.
func (o *openDisk) serve(in io.Reader, out io.Writer) {
	var request struct {
		What           uint32
		Offset, Length uint64
	}
	var room []byte
	var next time.Time
	for binary.Read(in, binary.BigEndian, &request) == nil {
		var err error
		switch {
		case request.Length > nfcLongest && request.What == nfcRead:
			err = refusal(vixInvalid, "%d bytes are too much at once", request.Length)
		case request.What == nfcRead:
			if uint64(cap(room)) < request.Length {
				room = make([]byte, request.Length)
			}
			room = room[:request.Length]
			err = o.read(room, int64(request.Offset))
			next = o.slow(next, len(room))
		case request.What == nfcAllocated:
			room = o.allocated(room[:0], storage.Range{Start: int64(request.Offset), End: int64(request.Offset + request.Length)})
		case request.Length > nfcLongest && request.What == nfcWrite:
			return // what follows cannot be told from requests
		case request.What == nfcWrite:
			data := make([]byte, request.Length)
			if _, err := io.ReadFull(in, data); err != nil {
				return
			}
			room, err = room[:0], o.write(data, int64(request.Offset))
			next = o.slow(next, len(data))
		case request.What == nfcFlush:
			room = room[:0]
			o.count(func(s *nfcStats) { s.Flushes++ })
		default:
			err = refusal(vixUnsupported, "there is no request %d", request.What)
		}
		status, answer := uint32(0), room
		if err != nil {
			code, text := nfcCode(err)
			status, answer = code, []byte(text)
		}
		head := binary.BigEndian.AppendUint32(nil, status)
		head = binary.BigEndian.AppendUint64(head, uint64(len(answer)))
		if _, err := (&net.Buffers{head, answer}).WriteTo(out); err != nil {
			return
		}
	}
}

func (o *openDisk) read(into []byte, offset int64) error {
	if o.snapshot != nil && o.guest.snapshot(o.snapshot.ref) == nil {
		return refusal(vixFileNotFound, "snapshot %s is gone", o.snapshot.ref.Value)
	}
	if err := o.disk.missing(); err != nil {
		return refusal(vixFileNotFound, "%s", err)
	}
	if err := o.disk.ReadLayer(o.layer, into, offset); err != nil {
		return err
	}
	o.count(func(s *nfcStats) {
		s.Reads++
		s.Bytes += int64(len(into))
	})
	return nil
}

func (o *openDisk) write(from []byte, offset int64) error {
	knobs := o.guest.lab.knobs.get()
	written := o.disk.written.Add(int64(len(from))) // of all who opened it: a client may try again
	switch {
	case o.snapshot != nil:
		return refusal(vixNoAccess, "what a snapshot froze cannot be written to")
	case o.guest.gone.Load() || o.disk.missing() != nil:
		return refusal(vixFileNotFound, "the disk is gone")
	case o.guest.running():
		return refusal(vixNoAccess, "the disk is locked by a running VM")
	case knobs.UploadFault != "" && written > knobs.UploadFaultAfter:
		return refusal(vixNoSpace, "%s", knobs.UploadFault)
	}
	if _, err := o.disk.WriteAt(from, offset); err != nil {
		return err
	}
	o.count(func(s *nfcStats) {
		s.Writes++
		s.Written += int64(len(from))
	})
	return nil
}

func (o *openDisk) count(what func(*nfcStats)) {
	stats := &o.guest.lab.stats
	stats.Lock()
	defer stats.Unlock()
	what(&stats.nfc)
}

// allocated appends the offset and length of each allocated area within a range.
func (o *openDisk) allocated(to []byte, within storage.Range) []byte {
	areas := storage.Ranges{{Start: 0, End: o.disk.Size()}} // of a disk that may change nobody knows
	if o.snapshot != nil {
		areas = o.snapshot.content[o.disk.key]
	}
	for _, r := range areas {
		r.Start, r.End = max(r.Start, within.Start), min(r.End, within.End)
		if r.Len() > 0 {
			to = binary.BigEndian.AppendUint64(to, uint64(r.Start))
			to = binary.BigEndian.AppendUint64(to, uint64(r.Len()))
		}
	}
	return to
}

// slow holds a read back as the knob says, and returns when the next one may be answered.
func (o *openDisk) slow(next time.Time, bytes int) time.Time {
	return o.guest.lab.knobs.pass(int64(bytes), next, func(k Knobs) int64 { return k.NFCBytesPerSecond })
}

// nfcStats counts what port 902 served.
type nfcStats struct {
	Opens   int   `json:"opens"`
	OpenNow int   `json:"open_now"`
	MaxOpen int   `json:"max_open"`
	Reads   int   `json:"reads"`
	Bytes   int64 `json:"bytes"`
	Writes  int   `json:"writes"`
	Written int64 `json:"written"`
	Flushes int   `json:"flushes"`
}

// openDisk counts a disk as open, or refuses it when so many are open already; 0 is no limit.
func (s *stats) openDisk(limit int) error {
	s.Lock()
	defer s.Unlock()
	if limit > 0 && s.nfc.OpenNow >= limit {
		return refusal(vixRefused, "NfcServer: too many connections: %d disks of this host are open", s.nfc.OpenNow)
	}
	s.nfc.Opens++
	s.nfc.OpenNow++
	s.nfc.MaxOpen = max(s.nfc.MaxOpen, s.nfc.OpenNow)
	return nil
}

func (s *stats) closeDisk() {
	s.Lock()
	defer s.Unlock()
	s.nfc.OpenNow--
}
