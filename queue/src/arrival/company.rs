//! Company: whether something of the same VM is still in motion beside a disk that is still.
//!
//! An owner may come last, as `cp` of a whole export does it. Found out once per family and look,
//! so that many names of one family cost no more than as many of different ones.
use std::collections::HashMap;
use std::path::Path;

use crate::arrival::candidate;
use crate::arrival::settle::Stillness;
use crate::arrival::whole;

enum Motion {
    Unknown,
    None,
    /// Only this one.
    One(String),
    Several,
}

/// The names of one look at the queue directory, by family.
pub(super) struct Company {
    families: HashMap<String, (Vec<String>, Motion)>,
}

impl Company {
    pub fn of(names: &[String]) -> Self {
        let mut families: HashMap<String, (Vec<String>, Motion)> = HashMap::new();
        for name in names.iter().filter(|name| !candidate::is_ignored(name)) {
            families
                .entry(candidate::family(name).to_owned())
                .or_insert_with(|| (Vec::new(), Motion::Unknown))
                .0
                .push(name.clone());
        }
        Self { families }
    }

    /// Whether another name of the family of `name` is being written.
    pub fn is_in_motion(&mut self, queue: &Path, name: &str, stillness: &mut Stillness) -> bool {
        let Some((names, motion)) = self.families.get_mut(candidate::family(name)) else {
            return false;
        };
        if matches!(motion, Motion::Unknown) {
            *motion = look(queue, names, stillness);
        }
        match motion {
            Motion::Unknown | Motion::None => false,
            Motion::One(moving) => moving != name,
            Motion::Several => true,
        }
    }
}

fn look(queue: &Path, names: &[String], stillness: &mut Stillness) -> Motion {
    let mut found = Motion::None;
    for name in names {
        let path = queue.join(name);
        if !whole::is_open_for_writing(&path) && stillness.is_still(&path) {
            continue;
        }
        // One that is gone is neither.
        if std::fs::symlink_metadata(&path).is_err() {
            continue;
        }
        if matches!(found, Motion::One(_)) {
            return Motion::Several;
        }
        found = Motion::One(name.clone());
    }
    found
}
