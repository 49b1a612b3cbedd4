//! What a VMDK's descriptor and headers say, for `hyper2kvm inspect`.
use serde_json::{Value, json};

use super::descriptor::{ExtentKind, ExtentLine};
use super::grain::Sparse;
use super::{Part, Vmdk};
use crate::disk::{SECTOR_BYTES, brief};

pub(super) fn fields(disk: &Vmdk) -> Value {
    let descriptor = &disk.descriptor;
    let database = |key: &str| descriptor.database.get(key);
    let hex = |id: u32| format!("{id:08x}");
    let geometry = descriptor.geometry().map(|[cylinders, heads, sectors]| {
        json!({"cylinders": cylinders, "heads": heads, "sectors": sectors})
    });
    let parent = descriptor
        .parent
        .as_ref()
        .map(|parent| json!({"content_id": hex(parent.content_id), "hint": brief(&parent.hint)}));
    let extents: Vec<Value> = descriptor.extents.iter().map(extent).collect();
    let headers: Vec<Value> = disk.parts.iter().filter_map(header).collect();
    json!({
        "capacity_bytes": disk.capacity_bytes,
        "create_type": brief(&descriptor.create_type),
        "descriptor_version": descriptor.version,
        "encoding": descriptor.encoding,
        "content_id": descriptor.content_id.map(hex),
        "parent": parent,
        "adapter_type": database("adapterType"),
        "hardware_version": database("virtualHWVersion"),
        "tools_version": database("toolsVersion"),
        "uuid": database("uuid"),
        "geometry": geometry,
        "database": descriptor.database,
        "extents": extents,
        "sparse_headers": headers,
    })
}

fn extent(line: &ExtentLine) -> Value {
    let (kind, file, offset_sectors) = match &line.kind {
        ExtentKind::Zero => ("zero", None, None),
        ExtentKind::Flat {
            file,
            offset_sectors,
        } => ("flat", Some(file), Some(offset_sectors)),
        ExtentKind::Sparse { file } => ("sparse", Some(file), None),
    };
    json!({
        "access": line.access,
        "kind": kind,
        "length_bytes": line.sectors.saturating_mul(SECTOR_BYTES),
        "file": file.map(|file| brief(file)),
        "offset_bytes": offset_sectors.map(|sectors| sectors.saturating_mul(SECTOR_BYTES)),
    })
}

fn header(part: &Part) -> Option<Value> {
    let Part::Sparse(Sparse { window, header, .. }) = part else {
        return None;
    };
    Some(json!({
        "file": window.path(),
        "kind": header.kind,
        "version": header.version,
        "grain_bytes": header.grain_bytes,
        "grain_table_entries": header.table_entries,
        "grain_directory_offset_bytes": header.directory_range().map(|(offset, _)| offset),
        "compressed": header.compressed,
        "zeroed_grains": header.zero_grains,
        "unclean_shutdown": header.unclean,
    }))
}
