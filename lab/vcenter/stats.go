// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"maps"
	"net/http"
	"sync"

	"github.com/vmware/govmomi/simulator"
)

// stats is what tests and benches want to have counted.
type stats struct {
	sync.Mutex
	soap                   map[string]int // calls by method, without polls
	polls                  int            // looks at tasks
	logins, failed         int
	folderCalls, folderOut int64
	nfc                    nfcStats
	snapshots, removals    gauge
}

// gauge knows how many there are now, and how many there were at most.
type gauge struct{ now, most int }

func (s *stats) change(g *gauge, by int) {
	s.Lock()
	defer s.Unlock()
	g.now += by
	g.most = max(g.most, g.now)
}

func (s *stats) count(method *simulator.Method) {
	objects, _ := asked(method)
	poll := len(objects) > 0
	for _, object := range objects {
		poll = poll && object.Type == "Task"
	}
	s.Lock()
	defer s.Unlock()
	if poll {
		s.polls++
		return
	}
	if s.soap == nil {
		s.soap = map[string]int{}
	}
	s.soap[method.Name]++
}

// reset counts from zero on; of what exists now, there were that many.
func (s *stats) reset() {
	s.Lock()
	defer s.Unlock()
	s.soap, s.polls, s.logins, s.failed, s.folderCalls, s.folderOut = nil, 0, 0, 0, 0, 0
	s.nfc = nfcStats{OpenNow: s.nfc.OpenNow, MaxOpen: s.nfc.OpenNow}
	s.snapshots.most, s.removals.most = s.snapshots.now, s.removals.now
}

func (l *Lab) getStats(w http.ResponseWriter, _ *http.Request) {
	sessions := []map[string]any{}
	for _, session := range l.sessions() {
		sessions = append(sessions, map[string]any{
			"key": session.Key, "user": session.UserName, "agent": session.UserAgent, "login_time": session.LoginTime,
		})
	}
	l.stats.Lock()
	defer l.stats.Unlock()
	soap := map[string]int{}
	maps.Copy(soap, l.stats.soap)
	answer(w, map[string]any{
		"soap": soap, "task_polls": l.stats.polls, "logins": l.stats.logins, "failed_logins": l.stats.failed, "sessions": sessions,
		"folder":             map[string]int64{"requests": l.stats.folderCalls, "bytes": l.stats.folderOut},
		"nfc":                l.stats.nfc,
		"max_open_snapshots": l.stats.snapshots.most, "max_removals": l.stats.removals.most,
	})
}
