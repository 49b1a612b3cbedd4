// The simulated VMs: what the command line says of them, with real disks behind.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type disk struct {
	file     string
	capacity int64
	size     int64
	// As a lease and a descriptor name the device.
	key string
}

// furnish turns the model's first VMs into those of the command line.
func furnish(machines []string) (map[string][]disk, error) {
	var vms []*simulator.VirtualMachine
	for _, entity := range simulator.Map.All("VirtualMachine") {
		vms = append(vms, entity.(*simulator.VirtualMachine))
	}
	sort.Slice(vms, func(a, b int) bool { return vms[a].Name < vms[b].Name })
	disks := map[string][]disk{}
	for index, machine := range machines {
		name, files, found := strings.Cut(machine, "=")
		if !found || index >= len(vms) {
			return nil, fmt.Errorf("-vm %s: not name=disk", machine)
		}
		vm := vms[index]
		name, state, _ := strings.Cut(name, ":")
		vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff
		if state == "on" {
			vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOn
			vm.Guest.ToolsRunningStatus = "guestToolsRunning"
		}
		vm.Summary.Runtime.PowerState = vm.Runtime.PowerState
		vm.Name, vm.Config.Name, vm.Summary.Config.Name = name, name, name
		made, err := equip(vm, index, strings.Split(files, ","))
		if err != nil {
			return nil, err
		}
		disks[vm.Self.Value] = made
	}
	return disks, nil
}

// equip gives a VM its hardware: the first one UEFI with Secure Boot, the others BIOS.
func equip(vm *simulator.VirtualMachine, index int, files []string) ([]disk, error) {
	hardware := &vm.Config.Hardware
	hardware.NumCPU, hardware.MemoryMB = int32(3+index), int32(1536+512*index)
	vm.Summary.Config.NumCpu, vm.Summary.Config.MemorySizeMB = hardware.NumCPU, hardware.MemoryMB
	vm.Config.Annotation = "kept for <accounting> & friends"
	vm.Config.GuestId, vm.Config.GuestFullName = "debian11_64Guest", "Debian GNU/Linux 11 (64-bit)"
	vm.Config.Firmware = "bios"
	// Those after the second are its clones: they have the UUID of its BIOS.
	clone := index
	if clone > 1 {
		clone = 1
	}
	vm.Config.InstanceUuid = fmt.Sprintf("5010aaaa-0000-0000-0000-%012d", index)
	vm.Config.Uuid = fmt.Sprintf("4210aaaa-0000-0000-0000-%012d", clone)
	vm.Summary.Config.InstanceUuid, vm.Summary.Config.Uuid = vm.Config.InstanceUuid, vm.Config.Uuid
	if index == 0 {
		vm.Config.Firmware = "efi"
		vm.Config.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(true)}
	}
	var devices object.VirtualDeviceList
	for _, device := range hardware.Device {
		switch device := device.(type) {
		case *types.VirtualDisk:
		case types.BaseVirtualEthernetCard:
			card := device.GetVirtualEthernetCard()
			card.MacAddress = fmt.Sprintf("00:50:56:AB:CD:%02x", index)
			devices = append(devices, vmxnet3(card))
		default:
			devices = append(devices, device)
		}
	}
	controller := &types.ParaVirtualSCSIController{}
	controller.Key, controller.BusNumber = 1001, 1
	devices = append(devices, controller)
	var disks []disk
	for unit, file := range files {
		made, err := open(file, unit)
		if err != nil {
			return nil, err
		}
		number := int32(unit)
		device := &types.VirtualDisk{CapacityInBytes: made.capacity, CapacityInKB: made.capacity / 1024}
		device.Key, device.ControllerKey, device.UnitNumber = 2016+number, controller.Key, &number
		device.DeviceInfo = &types.Description{Label: fmt.Sprintf("Hard disk %d", unit+1), Summary: ""}
		device.Backing = &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
				FileName: fmt.Sprintf("[LocalDS_0] %s/%s", vm.Name, filepath.Base(file)),
			},
			DiskMode: "persistent",
		}
		// The last disk comes first in the list: order is the reader's business.
		devices = append(object.VirtualDeviceList{device}, devices...)
		disks = append(disks, made)
	}
	hardware.Device = devices
	return disks, nil
}

// Every card is a vmxnet3.
func vmxnet3(card *types.VirtualEthernetCard) types.BaseVirtualDevice {
	return &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: *card}}
}

// open reads the capacity from a sparse VMDK's header.
func open(file string, unit int) (disk, error) {
	handle, err := os.Open(file)
	if err != nil {
		return disk{}, err
	}
	defer handle.Close()
	header := make([]byte, 64)
	if _, err := handle.ReadAt(header, 0); err != nil || string(header[:4]) != "KDMV" {
		return disk{}, fmt.Errorf("%s is not a sparse VMDK", file)
	}
	about, err := handle.Stat()
	if err != nil {
		return disk{}, err
	}
	return disk{
		file:     file,
		capacity: int64(binary.LittleEndian.Uint64(header[12:20])) * 512,
		size:     about.Size(),
		key:      fmt.Sprintf("ParaVirtualSCSIController1:%d", unit),
	}, nil
}
