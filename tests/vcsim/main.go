// vcsim: govmomi's vCenter simulator with what it lacks of an export: ExportVm, ExportSnapshot,
// their lease and its downloads, CreateDescriptor, FindAllByUuid.
//
//	vcsim [-esx] [-certificates directory [-tls]] -vm name[:on]=disk.vmdk[,disk.vmdk] ...
//
// Serves files of this host below /file/, to be compared with.
// Prints one line "vcsim <url>" when it listens, and ends when its standard input does. /control
// tells and changes what happens; see control.go.
package main

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type machines []string

func (m *machines) String() string     { return strings.Join(*m, " ") }
func (m *machines) Set(s string) error { *m = append(*m, s); return nil }

func main() {
	var vms machines
	esx := flag.Bool("esx", false, "an ESXi host instead of a vCenter")
	certificates := flag.String("certificates", "", "where to write a new certificate and its key")
	secure := flag.Bool("tls", false, "TLS with that certificate")
	flag.Var(&vms, "vm", "name[:on]=disk.vmdk[,disk.vmdk]")
	flag.Parse()

	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	}
	model.Machine = len(vms) + 1
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	disks, err := furnish(vms)
	if err != nil {
		log.Fatal(err)
	}
	server := newExports(disks)
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("export", "s3cret&<pass>")}
	if *certificates != "" {
		certificate, err := certify(*certificates)
		if err != nil {
			log.Fatal(err)
		}
		if *secure {
			model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		}
	}
	simulated := model.Service.NewServer()
	simulated.Config.Handler = server.before(simulated.Config.Handler)
	fmt.Printf("vcsim %s\n", (&url.URL{Scheme: simulated.URL.Scheme, Host: simulated.URL.Host}).String())
	_, _ = io.Copy(io.Discard, os.Stdin)
	// Whoever is still connected has lost its test.
	model.Remove()
	os.Exit(0)
}

// before sees every request first: serves what is ours, counts calls and disturbs them, and sends
// the methods that the simulator's own objects lack to ours.
func (e *exports) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/nfc/export/"):
			e.serveDisk(w, r)
			return
		case strings.HasPrefix(r.URL.Path, "/file/"):
			http.ServeFile(w, r, strings.TrimPrefix(r.URL.Path, "/file"))
			return
		case r.URL.Path == "/control":
			e.control(w, r)
			return
		case r.URL.Path == "/sdk":
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if e.disturb(w, r, body) {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(e.redirect(body)))
		}
		next.ServeHTTP(w, r)
	})
}

// redirect names our object instead of the simulator's where only ours has the method.
func (e *exports) redirect(body []byte) []byte {
	for _, method := range []string{
		"<ExportVm ", "<ExportSnapshot ", "<CreateDescriptor ", "<FindAllByUuid ",
	} {
		at := bytes.Index(body, []byte(method))
		if at < 0 {
			continue
		}
		match := this.FindSubmatchIndex(body[at:])
		if match == nil {
			continue
		}
		value := string(body[at+match[4] : at+match[5]])
		ours := &ExportManager{exports: e}
		ours.Self = types.ManagedObjectReference{Type: "ExportManager", Value: value}
		simulator.Map.Put(ours)
		var out bytes.Buffer
		out.Write(body[:at+match[2]])
		out.WriteString("ExportManager")
		out.Write(body[at+match[3]:])
		return out.Bytes()
	}
	return body
}

var this = regexp.MustCompile(`<_this type="([A-Za-z]+)">([^<]*)</_this>`)
