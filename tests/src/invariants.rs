//! What must hold on a model disk: at any moment, right after a crash, and when all work is done.
//!
//! Judges paths and texts only; never asks the spool, which is what is on trial.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use queue::instance::OnConflict;
use queue::job::{JobId, JobState, Record};
use queue::spool::{Drop, DropKind};
use serde_json::Value;

use crate::model::Disk;
use crate::scene::{Dropped, Scene, TARGET, area, directories, exported, result_text};

pub type Verdict = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// One look at a disk.
pub struct Picture {
    pub tree: BTreeMap<PathBuf, String>,
}

/// A result directory under its final name.
struct Published {
    directory: PathBuf,
    of: String,
}

impl Picture {
    pub fn of(disk: &Disk) -> Self {
        Self { tree: disk.tree() }
    }

    fn children(&self, directory: &Path) -> impl Iterator<Item = (&Path, &str)> {
        let entries = self
            .tree
            .iter()
            .map(|(path, text)| (path.as_path(), text.as_str()));
        entries.filter(move |(path, _)| path.parent() == Some(directory))
    }

    fn json(&self, path: &Path) -> Option<Value> {
        serde_json::from_str(self.tree.get(path)?).ok()
    }

    pub fn records(&self) -> Result<Vec<Record>, String> {
        let records = directories().records();
        let seen = self.children(&records).filter(|(path, _)| {
            // What was written aside is seen by nobody.
            !path.file_name().unwrap().to_string_lossy().starts_with('.')
        });
        seen.filter(|(_, text)| !text.is_empty())
            .filter_map(|(path, text)| match serde_json::from_str(text) {
                Ok(record) => Some(Ok(record)),
                // A record that was not yet told for sure may be torn; its job is told again.
                Err(_) if self.is_in_processing(path) => None,
                Err(error) => Some(Err(format!("{}: {error}", path.display()))),
            })
            .collect()
    }

    fn is_in_processing(&self, record: &Path) -> bool {
        let job = directories().processing().join(record.file_stem().unwrap());
        self.tree.contains_key(&job)
    }

    fn published(&self, scene: &Scene) -> Vec<(PathBuf, Option<Published>)> {
        let directories_with = self.tree.iter().filter(|(path, text)| {
            area(path) == "output"
                && *text == "/"
                && !path.starts_with(directories().daemon())
                && !path.starts_with(directories().staging())
                && self
                    .children(path)
                    .any(|(_, text)| text != "/" && !text.starts_with("-> "))
                && !scene
                    .drops
                    .iter()
                    .any(|d| Path::new("/o").join(&d.drop.place) == **path)
        });
        directories_with
            .map(|(path, _)| {
                let metadata = self.json(&path.join("metadata.json"));
                let published = metadata.and_then(|metadata| {
                    Some(Published {
                        directory: path.clone(),
                        of: metadata.get("of")?.as_str()?.to_owned(),
                    })
                });
                (path.clone(), published)
            })
            .collect()
    }

    fn links(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.tree.iter().filter_map(|(path, text)| {
            let is_final = path.extension()? == "qcow2" && area(path) == "output";
            let target = text.strip_prefix("-> ")?;
            is_final.then(|| (path.as_path(), path.parent().unwrap().join(target)))
        })
    }

    fn in_areas(&self, text: &str) -> Vec<&Path> {
        let copies = self.tree.iter().filter(|(_, held)| *held == text);
        let copies = copies.map(|(path, _)| path.as_path());
        copies
            .filter(|path| !matches!(area(path), "output" | ".staging"))
            .collect()
    }

    /// Holds at any moment and after any crash.
    pub fn check_always(&self, scene: &Scene) -> Verdict {
        for dropped in &scene.drops {
            if dropped.is_submitted {
                self.check_never_half(dropped)?;
            } else {
                self.check_never_lost(scene, dropped)?;
            }
        }
        if let Some(kept) = scene.keeps {
            ensure(self.tree.contains_key(Path::new(kept)), || {
                format!("{kept} is gone")
            })?;
        }
        self.check_delivered()?;
        for (path, published) in self.published(scene) {
            let Some(published) = published else {
                // Not ours: the scene put it there.
                ensure(self.tree.contains_key(&path.join("foreign")), || {
                    format!("{} is published without metadata", path.display())
                })?;
                continue;
            };
            self.check_whole(scene, &published)?;
        }
        for (link, target) in self.links() {
            ensure(self.tree.contains_key(&target), || {
                format!("{} dangles", link.display())
            })?;
        }
        for record in self.records()? {
            self.check_told(scene, &record)?;
        }
        Ok(())
    }

    /// What stands in the other queue: drops with what is in them.
    fn delivered(&self) -> Vec<(&Path, Vec<(String, &str)>)> {
        let drops = self.children(Path::new(TARGET));
        let visible = drops.filter(|(path, _)| !path.ends_with(".incoming"));
        let held = |(path, _)| {
            let children = self.children(path);
            let named = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            let files = children.map(|(path, text)| (named(path), text)).collect();
            (path, files)
        };
        visible.map(held).collect()
    }

    /// Nothing half, nothing twice.
    fn check_delivered(&self) -> Verdict {
        let mut seen = BTreeMap::new();
        for (path, files) in self.delivered() {
            let asked = files
                .first()
                .and_then(|(_, text)| text.strip_prefix("disk of "));
            let whole: Vec<_> = exported(asked.unwrap_or_default()).into();
            let right = whole.iter().map(|(name, text)| (name.to_string(), &**text));
            ensure(asked.is_some() && files.iter().cloned().eq(right), || {
                format!("{} is not whole: {files:?}", path.display())
            })?;
            let before = seen.insert(asked, path);
            ensure(before.is_none(), || {
                format!("{} and {before:?} are one export", path.display())
            })?;
        }
        Ok(())
    }

    fn is_delivered(&self, record: &Record) -> bool {
        let Some(told) = &record.delivered else {
            return false;
        };
        let path = told.queue.join(&told.drop);
        self.delivered().iter().any(|(drop, _)| *drop == path)
    }

    fn check_never_lost(&self, scene: &Scene, dropped: &Dropped) -> Verdict {
        let deletes = scene.policy.archive == queue::instance::Archive::Delete;
        let is_published = self.published(scene).iter().any(|(_, published)| {
            published
                .as_ref()
                .is_some_and(|published| published.of == dropped.files[0].1)
        });
        for (name, text) in &dropped.files {
            let places = self.in_areas(text);
            if places.is_empty() && deletes && is_published {
                continue;
            }
            ensure(places.len() == 1, || {
                format!("{name} is in {} places: {places:?}", places.len())
            })?;
        }
        Ok(())
    }

    /// A submission is visible whole or not at all.
    fn check_never_half(&self, dropped: &Dropped) -> Verdict {
        let visible = |(_, text): &&(String, String)| self.is_visible(text);
        let count = dropped.files.iter().filter(visible).count();
        let anything = self.tree.iter().any(|(path, text)| {
            area(path) == "queue" && text != "/" || text == "/" && self.is_empty_drop(path)
        });
        ensure(
            count == dropped.files.len() || (count == 0 && !anything),
            || {
                format!(
                    "{count} of {} submitted files are visible",
                    dropped.files.len()
                )
            },
        )
    }

    fn is_empty_drop(&self, path: &Path) -> bool {
        area(path) == "queue"
            && !path.file_name().unwrap().to_string_lossy().starts_with('.')
            && self.children(path).next().is_none()
    }

    /// Whether a submission that was told to be done is there.
    pub fn has_submissions(&self, scene: &Scene) -> bool {
        let submitted = scene.drops.iter().filter(|dropped| dropped.is_submitted);
        let mut texts = submitted.flat_map(|dropped| &dropped.files);
        texts.all(|(_, text)| self.is_visible(text))
    }

    fn is_visible(&self, text: &str) -> bool {
        let places = self.in_areas(text);
        places.iter().any(|path| area(path) != ".incoming")
    }

    fn check_whole(&self, scene: &Scene, published: &Published) -> Verdict {
        let mut disks = 0;
        for (path, text) in self.children(&published.directory) {
            if scene.keeps.map(Path::new) == Some(path) {
                // Somebody put it there since.
                continue;
            }
            let name = path.file_name().unwrap().to_string_lossy();
            let known = name == "metadata.json" || name == "domain.xml";
            ensure(known || name.ends_with(".qcow2"), || {
                format!("{} is published", path.display())
            })?;
            if path
                .extension()
                .is_some_and(|extension| extension == "qcow2")
            {
                disks += 1;
                ensure(text == result_text(&published.of), || {
                    format!("{} is not whole: {text:?}", path.display())
                })?;
            }
        }
        ensure(disks == 1, || {
            format!("{} has {disks} disks", published.directory.display())
        })
    }

    /// A record never says more than is there, and no earlier result stands for a later job.
    fn check_told(&self, scene: &Scene, record: &Record) -> Verdict {
        let id = record.job_id;
        match record.state {
            JobState::Completed if record.delivered.is_some() => {
                ensure(self.is_delivered(record), || {
                    format!("{id} is told completed without a drop")
                })
            }
            JobState::Completed => {
                let link = record
                    .outputs
                    .iter()
                    .find(|path| self.links().any(|l| l.0 == *path));
                let replaced = self
                    .records()?
                    .iter()
                    .any(|other| other.vm_name == record.vm_name && other.job_id > id);
                ensure(
                    link.is_some() || replaced || self.is_being_replaced(record),
                    || format!("{id} is told completed without a link"),
                )
            }
            // Of two that wait under one name, the first may well be done before the second.
            JobState::Processing | JobState::Queued if scene.drops.len() > 1 => Ok(()),
            JobState::Processing | JobState::Queued => {
                let rejects = scene.policy.on_conflict == OnConflict::Reject;
                let stale = self.links().find(|(link, _)| {
                    // What may not be replaced keeps its link.
                    if rejects {
                        return false;
                    }
                    let stem = link.file_stem().unwrap().to_string_lossy();
                    stem == record.vm_name.as_str() && self.job_of(link) != Some(id)
                });
                ensure(stale.is_none(), || {
                    format!("{stale:?} of an earlier job stands for {id}")
                })?;
                let text = directories()
                    .output
                    .join(format!("{}.error", record.vm_name));
                let is_failed_now = self.stage_of(id).is_some_and(|stage| stage == "failed");
                ensure(!self.tree.contains_key(&text) || is_failed_now, || {
                    format!("an earlier .error stands for {id}")
                })
            }
            JobState::Failed | JobState::Cancelled => Ok(()),
        }
    }

    /// A later job of the same name has been claimed and has retired the link.
    fn is_being_replaced(&self, record: &Record) -> bool {
        let processing = directories().processing();
        self.children(&processing).any(|(job, _)| {
            self.json(&job.join("job.json")).is_some_and(|memory| {
                memory["vm_name"] == record.vm_name.as_str()
                    && memory["job_id"] != record.job_id.to_string()
            })
        })
    }

    fn job_of(&self, link: &Path) -> Option<JobId> {
        let (_, target) = self.links().find(|(path, _)| *path == link)?;
        let metadata = self.json(&target.parent()?.join("metadata.json"))?;
        metadata.get("job_id")?.as_str()?.parse().ok()
    }

    fn stage_of(&self, id: JobId) -> Option<String> {
        let job = directories().processing().join(id.to_string());
        Some(
            self.json(&job.join("job.json"))?
                .get("stage")?
                .as_str()?
                .to_owned(),
        )
    }

    /// Holds when all work is done.
    pub fn check_end(&self, scene: &Scene) -> Verdict {
        self.check_always(scene)?;
        for path in self.tree.keys() {
            let name = path.file_name().unwrap().to_string_lossy();
            let known = name.starts_with('.') || self.is_empty_drop(path);
            ensure(!name.ends_with(".tmp"), || {
                format!("{} is left behind", path.display())
            })?;
            ensure(!matches!(area(path), ".processing" | ".staging"), || {
                format!("{} is left behind", path.display())
            })?;
            ensure(area(path) != "queue" || known, || {
                format!("{} waits for ever", path.display())
            })?;
        }
        for gone in scene.gone {
            let path = Path::new(gone);
            ensure(!self.tree.contains_key(path), || format!("{gone} stays"))?;
        }
        let records = self.records()?;
        for record in &records {
            ensure(record.state.is_final(), || {
                format!("{} is told {:?}", record.job_id, record.state)
            })?;
        }
        for dropped in &scene.drops {
            self.check_drop_ended(scene, dropped, &records)?;
        }
        Ok(())
    }

    fn check_drop_ended(&self, scene: &Scene, dropped: &Dropped, records: &[Record]) -> Verdict {
        let Drop { name, .. } = &dropped.drop;
        if dropped.is_submitted && !self.is_visible(&dropped.files[0].1) {
            return Ok(());
        }
        let is_told = |record: &&Record| match dropped.is_submitted {
            true => record.drop.starts_with("job-"),
            false => record.drop == *name,
        };
        let told: Vec<&Record> = records.iter().filter(is_told).collect();
        if dropped.ends.is_empty() {
            // Another drop owns it: that one's end is the end.
            let places = self.in_areas(&dropped.files[0].1);
            let archived = matches!(places[..], [only] if area(only) == ".processed");
            return ensure(archived, || format!("{name} is in {places:?}"));
        }
        let [record] = told[..] else {
            return Err(format!("{name} has {} records", told.len()));
        };
        ensure(dropped.ends.contains(&record.state), || {
            format!("{name} ended {:?}", record.state)
        })?;
        let completed = record.state == JobState::Completed;
        if dropped.drop.kind == DropKind::Request {
            ensure(self.is_delivered(record) == completed, || {
                format!("{name} ended {:?}: {:?}", record.state, self.delivered())
            })?;
            let left: Vec<_> = self.children(Path::new("/t/.incoming")).collect();
            // Of a rename that a crash undid in part, seen by nobody.
            let is_stale = |(path, _): &(&Path, &str)| {
                let drop = Path::new(TARGET).join(path.file_name().unwrap());
                self.tree.contains_key(&drop)
            };
            ensure(left.iter().all(is_stale), || {
                format!("{left:?} are left behind")
            })?;
            return self.check_archived(scene, dropped, completed);
        }
        let stem = match &dropped.drop.place[..] {
            "" => directories().output.join(&record.vm_name),
            place => directories().output.join(place).join(&record.vm_name),
        };
        let link = PathBuf::from(format!("{}.qcow2", stem.display()));
        // Of two jobs of one name, either may have been the last.
        let is_last = scene.drops.len() == 1 || self.job_of(&link) == Some(record.job_id);
        let is_linked = self.tree.contains_key(&link);
        let error = PathBuf::from(format!("{}.error", stem.display()));
        let lonely_error = directories().output.join(error.file_name().unwrap());
        let has_error = self.tree.contains_key(&error) || self.tree.contains_key(&lonely_error);
        if is_last {
            let rejected = !completed && scene.policy.on_conflict == OnConflict::Reject;
            let is_right = is_linked == (completed || rejected);
            ensure(is_right && has_error != completed, || {
                format!(
                    "{name} ended {:?}: link {is_linked}, .error {has_error}",
                    record.state
                )
            })?;
        }
        if completed && is_last {
            ensure(self.job_of(&link) == Some(record.job_id), || {
                format!("{name}: another's result")
            })?;
            let metadata = self.json(&stem.join("metadata.json")).unwrap_or_default();
            ensure(metadata["of"] == dropped.files[0].1.as_str(), || {
                format!("{name}: wrong result")
            })?;
        }
        self.check_archived(scene, dropped, completed)
    }

    fn check_archived(&self, scene: &Scene, dropped: &Dropped, completed: bool) -> Verdict {
        let archive = if completed { ".processed" } else { ".errors" };
        let deletes = completed && scene.policy.archive == queue::instance::Archive::Delete;
        let files = dropped.files.iter().chain(&dropped.later);
        for (name, text) in files {
            let mut places = self.in_areas(text);
            // A name there that outlived its producer is seen by nobody.
            places.retain(|path| !dropped.is_submitted || area(path) != ".incoming");
            if deletes {
                ensure(places.is_empty(), || {
                    format!("{name} is not deleted: {places:?}")
                })?;
                continue;
            }
            let right = matches!(places[..], [only] if area(only) == archive);
            // A manifest that failed before its disks came leaves them to whoever asks next.
            ensure(right, || format!("{name} is not in {archive}: {places:?}"))?;
        }
        if !completed {
            let reports = self.tree.keys().filter(|path| {
                path.to_string_lossy().ends_with(".error.json")
                    && self
                        .json(path)
                        .is_some_and(|report| report["job"]["drop"] == *dropped.drop.name)
            });
            let count = reports.count();
            ensure(count == 1, || {
                format!("{} has {count} reports", dropped.drop.name)
            })?;
        }
        Ok(())
    }

    /// What a poller has seen done of the scene's drops: links, with the jobs whose results they
    /// lead to. Nothing where a later drop may take the place of an earlier one.
    pub fn seen_done(&self, scene: &Scene) -> Result<BTreeMap<PathBuf, JobId>, String> {
        let [dropped] = &scene.drops[..] else {
            return Ok(BTreeMap::new());
        };
        let ours: Vec<JobId> = self
            .records()?
            .iter()
            .filter(|record| record.drop == dropped.drop.name)
            .map(|record| record.job_id)
            .collect();
        let links = self
            .links()
            .filter_map(|(link, _)| Some((link.to_owned(), self.job_of(link)?)));
        Ok(links.filter(|(_, job)| ours.contains(job)).collect())
    }
}
