// Copyright: Contributors to sendense.backup
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// lab-vcenter is a vCenter for the lab: govmomi's simulator with disks that are real. README.md says what it offers.
package main

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(log.LstdFlags | log.LUTC)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab-vcenter:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("lab-vcenter", flag.ExitOnError)
	listen := flags.String("listen", "", "address `IP:PORT` to serve on")
	nfc := flags.String("nfc", "", "address `IP:PORT` where disks are served to lab/vddk")
	user := flags.String("user", "administrator@vsphere.local", "the one account's name")
	passwordFile := flags.String("password-file", "", "`file` with the account's password")
	cert := flags.String("cert", "", "PEM `file` with the server's certificate")
	key := flags.String("key", "", "PEM `file` with the certificate's key")
	var config Config
	flags.StringVar(&config.Datastores, "datastores", "", "`folder` of the datastores")
	flags.StringVar(&config.Guests, "guests", "", "`folder` of the golden disks")
	flags.StringVar(&config.Truth, "truth", "", "`folder` for the copies that tests compare with")
	control := flags.String("control", "", "path of the control API's unix `socket`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var missing []string
	flags.VisitAll(func(f *flag.Flag) {
		if f.Value.String() == "" {
			missing = append(missing, "--"+f.Name)
		}
	})
	if len(missing) > 0 || flags.NArg() > 0 {
		return fmt.Errorf("missing: %s; not understood: %s", strings.Join(missing, " "), strings.Join(flags.Args(), " "))
	}

	password, err := os.ReadFile(*passwordFile)
	if err != nil {
		return err
	}
	config.User, config.Password = *user, strings.TrimRight(string(password), "\r\n")
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		return err
	}
	// The listener first: a taken address must not cost the copying of disks.
	api, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	disks, err := net.Listen("tcp", *nfc)
	if err != nil {
		return err
	}
	config.Address, config.Thumbprint = api.Addr().String(), thumbprint(pair.Certificate[0])
	lab, err := NewLab(config)
	if err != nil {
		return err
	}
	defer lab.Close()
	private, err := listenPrivately(*control)
	if err != nil {
		return err
	}

	// ESXi and vCenter's datastore browser speak HTTP/1.1; clients' many connections are part of what is tested.
	secure := tls.NewListener(api, &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	})
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	servers := []*http.Server{
		{Handler: lab.Handler(), ReadHeaderTimeout: time.Minute},
		{Handler: lab.Control(), ReadHeaderTimeout: time.Minute},
	}
	failed := make(chan error, len(servers)+1)
	go func() { failed <- lab.ServeNFC(disks) }()
	for i, listener := range []net.Listener{secure, private} {
		go func() { failed <- servers[i].Serve(listener) }()
	}
	fmt.Println("ready")
	select {
	case err = <-failed:
	case <-stop.Done():
	}
	for _, server := range servers {
		err = errors.Join(err, server.Close())
	}
	return errors.Join(err, disks.Close())
}

// thumbprint returns the SHA-1 of a certificate as VMware's tools spell it.
func thumbprint(certificate []byte) string {
	sum := sha1.Sum(certificate)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// listenPrivately makes a unix socket that only its owner may open, in place of one that an earlier run left.
func listenPrivately(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%s: another lab-vcenter answers there", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}
