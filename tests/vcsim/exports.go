// What 0.24.2 lacks: ExportVm, ExportSnapshot, CreateDescriptor, FindAllByUuid, and the lease with
// its downloads.
package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type exports struct {
	mu     sync.Mutex
	disks  map[string][]disk // by the VM's reference
	leases map[string]*HttpNfcLease
	counts map[string]int
	set    settings
	// Cookies of sessions that expired, and all that were seen.
	expired, seen map[string]bool
}

func newExports(disks map[string][]disk) *exports {
	return &exports{
		disks:   disks,
		leases:  map[string]*HttpNfcLease{},
		counts:  map[string]int{},
		expired: map[string]bool{},
		seen:    map[string]bool{},
		set:     settings{Timeout: 300, Sha256: true, Sizes: true},
	}
}

// ExportManager answers for the object of its reference's value, whatever that is.
type ExportManager struct {
	Self types.ManagedObjectReference
	*exports
}

func (m ExportManager) Reference() types.ManagedObjectReference { return m.Self }

func (m *ExportManager) ExportVm(req *types.ExportVm) soap.HasFault {
	body := new(methods.ExportVmBody)
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: req.This.Value}
	vm, ok := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: ref})
	} else if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		body.Fault_ = simulator.Fault("The attempted operation cannot be performed in the current "+
			"state (Powered on).", &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff,
			ExistingState:  vm.Runtime.PowerState,
		})
	} else {
		body.Res = &types.ExportVmResponse{Returnval: m.lease(ref)}
	}
	return body
}

func (m *ExportManager) ExportSnapshot(req *types.ExportSnapshot) soap.HasFault {
	body := new(methods.ExportSnapshotBody)
	ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: req.This.Value}
	snapshot, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: ref})
		return body
	}
	body.Res = &types.ExportSnapshotResponse{Returnval: m.lease(snapshot.Vm)}
	return body
}

func (m *ExportManager) CreateDescriptor(req *types.CreateDescriptor) soap.HasFault {
	var text strings.Builder
	text.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Envelope " +
		"xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" " +
		"xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n  <References>\n")
	for index, file := range req.Cdp.OvfFiles {
		fmt.Fprintf(&text, "    <File ovf:href=%q ovf:id=\"file%d\" ovf:size=\"%d\"/>\n",
			file.Path, index+1, file.Size)
	}
	text.WriteString("  </References>\n  <DiskSection>\n    <Info>disks</Info>\n")
	for index := range req.Cdp.OvfFiles {
		for _, disk := range m.disks[req.Obj.Value] {
			if strings.HasSuffix(req.Cdp.OvfFiles[index].DeviceId, disk.key) {
				fmt.Fprintf(&text, "    <Disk ovf:capacity=\"%d\" ovf:diskId=\"vmdisk%d\" "+
					"ovf:fileRef=\"file%d\" ovf:format=\"http://www.vmware.com/interfaces/"+
					"specifications/vmdk.html#streamOptimized\"/>\n",
					disk.capacity, index+1, index+1)
			}
		}
	}
	fmt.Fprintf(&text, "  </DiskSection>\n  <VirtualSystem ovf:id=%q>\n    <Info>a VM</Info>\n"+
		"  </VirtualSystem>\n</Envelope>\n", req.Cdp.Name)
	return &methods.CreateDescriptorBody{Res: &types.CreateDescriptorResponse{
		Returnval: types.OvfCreateDescriptorResult{OvfDescriptor: text.String()},
	}}
}

func (m *ExportManager) FindAllByUuid(req *types.FindAllByUuid) soap.HasFault {
	body := &methods.FindAllByUuidBody{Res: new(types.FindAllByUuidResponse)}
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		uuid := vm.Config.Uuid
		if req.InstanceUuid != nil && *req.InstanceUuid {
			uuid = vm.Config.InstanceUuid
		}
		if strings.EqualFold(uuid, req.Uuid) {
			body.Res.Returnval = append(body.Res.Returnval, vm.Self)
		}
	}
	return body
}

// HttpNfcLease is on the server until it is completed or aborted, or until it times out.
type HttpNfcLease struct {
	mo.HttpNfcLease
	owner  *exports
	disks  []disk
	types  map[string]string
	alive  time.Time
	served map[string]int64
}

func (e *exports) lease(vm types.ManagedObjectReference) types.ManagedObjectReference {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := &HttpNfcLease{owner: e, disks: e.disks[vm.Value], types: map[string]string{}, alive: time.Now()}
	l.State = types.HttpNfcLeaseStateInitializing
	ref := simulator.Map.Put(l).Reference()
	e.leases[ref.Value] = l
	info := &types.HttpNfcLeaseInfo{Lease: ref, Entity: vm, LeaseTimeout: int32(e.set.Timeout)}
	no := types.NewBool(false)
	info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
		Key: "/" + vm.Value + "/nvram", Url: "https://*/nfc/export/" + ref.Value + "/x.nvram", Disk: no,
		TargetId: "x.nvram",
	})
	for index, disk := range l.disks {
		info.TotalDiskCapacityInKB += disk.capacity / 1024
		name := fmt.Sprintf("disk-%d.vmdk", index)
		url := types.HttpNfcLeaseDeviceUrl{
			Key:      "/" + vm.Value + "/" + disk.key,
			Url:      "https://*/nfc/export/" + ref.Value + "/" + name,
			Disk:     types.NewBool(true),
			TargetId: name,
		}
		if e.set.Sizes {
			url.FileSize = disk.size
		}
		info.DeviceUrl = append(info.DeviceUrl, url)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		simulator.Map.Update(l, []types.PropertyChange{
			{Name: "info", Val: info}, {Name: "state", Val: types.HttpNfcLeaseStateReady},
		})
	})
	go l.watch(time.Duration(e.set.Timeout) * time.Second)
	return ref
}

// watch ends a lease that nobody keeps alive.
func (l *HttpNfcLease) watch(timeout time.Duration) {
	for {
		time.Sleep(timeout / 10)
		l.owner.mu.Lock()
		over := time.Since(l.alive) > timeout
		there := l.owner.leases[l.Self.Value] != nil
		if over && there {
			l.owner.remove(l)
		}
		l.owner.mu.Unlock()
		if over || !there {
			return
		}
	}
}

func (e *exports) remove(l *HttpNfcLease) {
	delete(e.leases, l.Self.Value)
	simulator.Map.Remove(l.Self)
}

func (l *HttpNfcLease) HttpNfcLeaseProgress(req *types.HttpNfcLeaseProgress) soap.HasFault {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	l.TransferProgress, l.alive = req.Percent, time.Now()
	return &methods.HttpNfcLeaseProgressBody{Res: new(types.HttpNfcLeaseProgressResponse)}
}

func (l *HttpNfcLease) HttpNfcLeaseComplete(*types.HttpNfcLeaseComplete) soap.HasFault {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	l.owner.remove(l)
	return &methods.HttpNfcLeaseCompleteBody{Res: new(types.HttpNfcLeaseCompleteResponse)}
}

func (l *HttpNfcLease) HttpNfcLeaseAbort(*types.HttpNfcLeaseAbort) soap.HasFault {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	l.owner.remove(l)
	return &methods.HttpNfcLeaseAbortBody{Res: new(types.HttpNfcLeaseAbortResponse)}
}

func (l *HttpNfcLease) HttpNfcLeaseSetManifestChecksumType(
	req *types.HttpNfcLeaseSetManifestChecksumType,
) soap.HasFault {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	body := new(methods.HttpNfcLeaseSetManifestChecksumTypeBody)
	if !l.owner.set.Sha256 {
		fault := &types.MethodNotFound{Receiver: l.Self, Method: "HttpNfcLeaseSetManifestChecksumType"}
		body.Fault_ = simulator.Fault("", fault)
		return body
	}
	for _, pair := range req.DeviceUrlsToChecksumTypes {
		l.types[pair.Key] = pair.Value
	}
	body.Res = new(types.HttpNfcLeaseSetManifestChecksumTypeResponse)
	return body
}

func (l *HttpNfcLease) HttpNfcLeaseGetManifest(*types.HttpNfcLeaseGetManifest) soap.HasFault {
	body := new(methods.HttpNfcLeaseGetManifestBody)
	res := new(types.HttpNfcLeaseGetManifestResponse)
	for index, disk := range l.disks {
		url := l.Info.DeviceUrl[index+1]
		entry := types.HttpNfcLeaseManifestEntry{
			Key: url.Key, Disk: true, Capacity: disk.capacity, Size: disk.size,
		}
		if l.types[url.Key] == "sha256" {
			entry.ChecksumType, entry.Checksum = "sha256", sum(sha256.New(), disk.file)
		} else {
			entry.Sha1 = sum(sha1.New(), disk.file)
		}
		res.Returnval = append(res.Returnval, entry)
	}
	body.Res = res
	return body
}

// By algorithm and file: disks never change.
var sums sync.Map

func sum(sum hash.Hash, file string) string {
	key := fmt.Sprint(sum.Size(), file)
	if known, found := sums.Load(key); found {
		return known.(string)
	}
	handle, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer handle.Close()
	_, _ = io.Copy(sum, handle)
	text := fmt.Sprintf("%x", sum.Sum(nil))
	sums.Store(key, text)
	return text
}

// serveDisk serves /nfc/export/<lease>/disk-<n>.vmdk; like ESXi without ranges unless told.
func (e *exports) serveDisk(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	lease, set := e.leases[path.Base(path.Dir(r.URL.Path))], e.set
	e.mu.Unlock()
	var index int
	_, err := fmt.Sscanf(path.Base(r.URL.Path), "disk-%d.vmdk", &index)
	if lease == nil || err != nil || index >= len(lease.disks) {
		http.NotFound(w, r)
		return
	}
	file, err := os.Open(lease.disks[index].file)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	if set.Range {
		http.ServeContent(w, r, "", time.Time{}, file)
		return
	}
	if !set.Chunked {
		w.Header().Set("Content-Length", fmt.Sprint(lease.disks[index].size))
	}
	_, _ = io.Copy(w, file)
}
