#!/bin/sh
# guest.sh plain|lvm|btrfs: prints the raw disk of a bootable Debian as it comes from VMware: an
# initramfs for its controllers only, disks and network cards under the names they have there. Makes
# it (minutes, 1 GiB, as root) if it is not there. Never changed afterwards.
#   plain  BIOS, one ext4 partition
#   lvm    UEFI, /boot apart, / on LVM
#   btrfs  BIOS, / in a subvolume
set -eu
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg

variant=${1:-plain}
suite=bookworm
packages=systemd-sysv,udev,dbus,kmod,initramfs-tools,linux-image-amd64
packages=$packages,grub-pc-bin,grub-efi-amd64-bin,grub2-common
packages=$packages,ifupdown,iproute2,lvm2,btrfs-progs,e2fsprogs,open-vm-tools,zstd,login,passwd
mirror=http://deb.debian.org/debian
cache=${HYPER2KVM_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hyper2kvm-tests}
key=$(sha256sum "$0" | cut -c1-12)
disk=$cache/guest-$variant-$key.raw
root=$cache/guest-root-$key

mkdir -p "$cache"
exec 9>"$cache/guest-lock"
flock 9
if [ -f "$disk" ]; then
    echo "$disk"
    exit
fi
if [ "$(id -u)" != 0 ]; then
    echo "guest.sh: making $disk takes root" >&2
    exit 1
fi
log=$cache/guest-$variant.log
fail() {
    tail -n 20 "$log" >&2
    echo "guest.sh: $1 failed; all of it is in $log" >&2
    exit 1
}

make_root() {
    rm -rf "$root.part"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root.part" "$mirror" || return 1
    rm -rf "$root.part"/var/cache/apt/archives/*.deb "$root.part"/var/lib/apt/lists/* \
        "$root.part"/usr/share/doc/* "$root.part"/usr/share/locale/* "$root.part"/usr/share/man/*
    # Hardware that neither VMware nor KVM has, for the sake of time.
    for modules in "$root.part"/lib/modules/*; do
        for unused in drivers/gpu/drm/amd drivers/gpu/drm/i915 drivers/gpu/drm/nouveau \
            drivers/gpu/drm/radeon drivers/media drivers/net/wireless drivers/infiniband \
            drivers/iio drivers/staging drivers/isdn drivers/comedi sound net/mac80211 \
            net/bluetooth; do
            rm -rf "${modules:?}/kernel/$unused"
        done
        chroot "$root.part" depmod "$(basename "$modules")"
    done
    echo vmware-guest >"$root.part/etc/hostname"
    cat >"$root.part/etc/network/interfaces" <<INTERFACES
auto lo
iface lo inet loopback

auto ens192
iface ens192 inet static
    address 192.0.2.10/24
INTERFACES
    # Says on the serial line, once per boot, what the network came to be.
    cat >"$root.part/etc/systemd/system/say-network.service" <<UNIT
[Unit]
After=networking.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'ip -br link >/dev/ttyS0; ip -br addr >/dev/ttyS0'
[Install]
WantedBy=multi-user.target
UNIT
    chroot "$root.part" systemctl enable say-network.service
    mv "$root.part" "$root"
}

# settle_root FSTAB CMDLINE MODULE...: what differs between the variants.
settle_root() {
    printf '%s\n' "$1" >"$root/etc/fstab"
    cat >"$root/etc/default/grub" <<GRUB
GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="$2"
GRUB_TERMINAL=console
GRUB_DISABLE_LINUX_UUID=true
GRUB_DISABLE_OS_PROBER=true
GRUB
    shift 2
    sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
    printf '%s\n' mptspi vmw_pvscsi sd_mod "$@" >"$root/etc/initramfs-tools/modules"
    chroot "$root" update-initramfs -u -k all
    tar -C "$root" --numeric-owner -cf "$cache/guest-root.tar" .
}

# Programs in the appliance see its own names of disks, which may be in another order each time.
install_grub='grub-install --target=i386-pc "$(grub-probe --target=disk /)"'
name_root='sed -i s,root=/dev/sd[a-z]1,root=/dev/sda1, /boot/grub/grub.cfg'

# fish COMMANDS: runs them on the disk, within a time limit.
fish() {
    truncate -s 3G "$disk.part"
    timeout 1500 guestfish --format=raw -a "$disk.part" run : "$@"
}

make_plain() {
    settle_root '/dev/sda1 / ext4 errors=remount-ro 0 1' 'console=tty0 console=ttyS0' ext4 ||
        return 1
    fish part-disk /dev/sda mbr : part-set-bootable /dev/sda 1 true : mkfs ext4 /dev/sda1 : \
        mount /dev/sda1 / : tar-in "$cache/guest-root.tar" / : \
        sh "$install_grub" : command update-grub : sh "$name_root"
}

make_lvm() {
    settle_root '/dev/mapper/vg-root / ext4 errors=remount-ro 0 1
/dev/sda2 /boot ext4 defaults 0 2
/dev/sda1 /boot/efi vfat umask=0077 0 1' '' ext4 dm-mod || return 1
    fish part-init /dev/sda gpt : part-add /dev/sda p 2048 264191 : \
        part-set-gpt-type /dev/sda 1 C12A7328-F81F-11D2-BA4B-00A0C93EC93B : \
        part-add /dev/sda p 264192 788479 : part-add /dev/sda p 788480 6289407 : \
        mkfs vfat /dev/sda1 : mkfs ext4 /dev/sda2 : pvcreate /dev/sda3 : vgcreate vg /dev/sda3 : \
        lvcreate-free root vg 100 : mkfs ext4 /dev/vg/root : mount /dev/vg/root / : \
        mkdir-p /boot : mount /dev/sda2 /boot : mkdir-p /boot/efi : mount /dev/sda1 /boot/efi : \
        tar-in "$cache/guest-root.tar" / : \
        command "grub-install --target=x86_64-efi --efi-directory=/boot/efi --no-nvram" : \
        command update-grub
}

make_btrfs() {
    settle_root '/dev/sda1 / btrfs subvol=@ 0 0
/dev/sda1 /home btrfs subvol=@home 0 0' '' btrfs || return 1
    fish part-init /dev/sda mbr : part-add /dev/sda p 2048 6289407 : \
        part-set-bootable /dev/sda 1 true : mkfs btrfs /dev/sda1 : mount /dev/sda1 / : \
        btrfs-subvolume-create /@ : btrfs-subvolume-create /@home : umount-all : \
        mount-options subvol=@ /dev/sda1 / : tar-in "$cache/guest-root.tar" / : \
        mount-options subvol=@home /dev/sda1 /home : \
        sh "$install_grub" : command update-grub : sh "$name_root"
}

rm -f "$disk.part"
{
    if [ ! -d "$root" ]; then
        make_root
    fi
} >"$log" 2>&1 || fail debootstrap
case $variant in
plain | lvm | btrfs) "make_$variant" >>"$log" 2>&1 || fail "making $disk" ;;
*) fail "no variant $variant: it" ;;
esac
rm -f "$cache/guest-root.tar"
mv "$disk.part" "$disk"
echo "$disk"
