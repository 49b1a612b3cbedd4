// /control: what tests ask of the simulator and how they disturb it.
//
//	GET  /control            what is there: snapshots, leases, calls
//	POST /control?key=value  timeout (of new leases, seconds), sha256, range, chunked, sizes (0 or 1),
//	                         expire (every session so far), fault=Method (each call until fault=)
package main

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type settings struct {
	Timeout                       int
	Sha256, Range, Chunked, Sizes bool
	Fault                         string
}

var called = regexp.MustCompile(`<soapenv:Body>\s*<([A-Za-z_]+)[ >/]`)

// disturb does to a call what was asked for; true if the call is answered.
func (e *exports) disturb(w http.ResponseWriter, r *http.Request, body []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cookie, err := r.Cookie("vmware_soap_session"); err == nil {
		e.seen[cookie.Value] = true
		if e.expired[cookie.Value] {
			r.Header.Del("Cookie")
		}
	}
	match := called.FindSubmatch(body)
	if match == nil {
		return false
	}
	method := string(match[1])
	e.counts[method]++
	if e.set.Fault != method {
		return false
	}
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = w.Write([]byte(`<?xml version="1.0" encoding="UTF-8"?>
<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>
<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>asked for by the test</faultstring>
<detail><SystemErrorFault xmlns="urn:vim25"/></detail></soapenv:Fault></soapenv:Body></soapenv:Envelope>`))
	return true
}

func (e *exports) control(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, values := range r.URL.Query() {
		value := values[0]
		yes := value == "1"
		switch key {
		case "timeout":
			e.set.Timeout, _ = strconv.Atoi(value)
		case "sha256":
			e.set.Sha256 = yes
		case "range":
			e.set.Range = yes
		case "chunked":
			e.set.Chunked = yes
		case "sizes":
			e.set.Sizes = yes
		case "fault":
			e.set.Fault = value
		case "expire":
			for cookie := range e.seen {
				e.expired[cookie] = true
			}
		default:
			http.Error(w, "unknown key "+key, http.StatusBadRequest)
			return
		}
	}
	state := struct {
		Snapshots, Leases []string
		Calls             map[string]int
	}{[]string{}, []string{}, e.counts}
	for id := range e.leases {
		state.Leases = append(state.Leases, id)
	}
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		if vm.Snapshot != nil {
			state.Snapshots = append(state.Snapshots, names(vm.Snapshot.RootSnapshotList)...)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(state)
}

func names(tree []types.VirtualMachineSnapshotTree) []string {
	var found []string
	for _, snapshot := range tree {
		found = append(found, snapshot.Name)
		found = append(found, names(snapshot.ChildSnapshotList)...)
	}
	return found
}
