//! A text becomes a table of its runs of tokens.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use super::{BUCKET, ENTRY, FORMAT, MAX_ORDER, VERSION, find, place};
use crate::draft::hash::RunHash;
use crate::error::{Error, Result};
use crate::weights::{Dtype, TensorView, save_safetensors};

/// A run that stood in the text only once says little of what follows.
const LEAST_COUNT: usize = 2;
/// A guess that comes true less often costs more than it spares.
const LEAST_CONFIDENCE: f32 = 0.25;
/// A longer run is left out if a shorter one gives the same token with so much of its confidence.
const AS_GOOD: f32 = 0.75;

/// What a table shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// Shortest runs.
    pub min_order: usize,
    /// Longest runs, at most 8.
    pub max_order: usize,
    /// Most bytes of all entries together. The runs whose guesses came true most often stay.
    pub max_bytes: u64,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self { min_order: 2, max_order: 5, max_bytes: 4 << 20 }
    }
}

/// What became of the runs of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderReport {
    /// Tokens of a run.
    pub order: usize,
    /// Runs in the table.
    pub entries: usize,
    /// Bytes that they take.
    pub bytes: u64,
}

/// A run that may go into the table.
struct Candidate {
    hash: RunHash,
    token: u32,
    confidence: u8,
    /// How often its guess came true in the text.
    hits: usize,
}

/// Writes the table of some texts, token ids below `vocab_size`, to `path`, in a folder that is made if needed. The same
/// texts give the same file.
///
/// `progress` counts lengths of runs. The file appears when it is complete: an error or a `Break` leaves what was there.
///
/// # Errors
/// [`Error::Option`] for options that make no sense, [`Error::TokenId`], [`Error::Cancelled`], [`Error::Io`].
pub fn build_table(
    path: &Path,
    texts: &[Vec<u32>],
    vocab_size: usize,
    options: &TableOptions,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Vec<OrderReport>> {
    check(texts, vocab_size, options)?;
    let TableOptions { min_order, max_order, max_bytes } = *options;
    let total = (max_order - min_order + 1) as u64;
    let mut tables: Vec<(String, Vec<u8>)> = Vec::new();
    let mut report = Vec::new();
    // From the shortest on, so that longer runs can be left out where shorter ones say the same.
    for order in min_order..=max_order {
        let done = (order - min_order) as u64;
        if progress(done, total).is_break() {
            return Err(Error::Cancelled);
        }
        let used: u64 = report.iter().map(|order: &OrderReport| order.bytes).sum();
        let buckets = (max_bytes - used) / (total - done) / BUCKET as u64;
        let candidates = candidates(texts, order, min_order, &tables);
        let (entries, bytes) = fill(candidates, usize::try_from(buckets).unwrap_or(usize::MAX));
        report.push(OrderReport { order, entries, bytes: bytes.len() as u64 });
        tables.push((format!("order.{order}"), bytes));
    }
    if progress(total, total).is_break() {
        return Err(Error::Cancelled);
    }
    let shapes: Vec<[usize; 3]> = tables.iter().map(|(_, bytes)| [bytes.len() / BUCKET, 4, ENTRY]).collect();
    let views: Vec<TensorView<'_>> = tables
        .iter()
        .zip(&shapes)
        .map(|((name, bytes), shape)| TensorView { name, dtype: Dtype::U8, shape, bytes })
        .collect();
    let notes = [("format", FORMAT.into()), ("version", VERSION.into()), ("vocab_size", vocab_size.to_string())];
    let metadata: BTreeMap<String, String> = notes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    save_safetensors(path, &views, &metadata)?;
    Ok(report)
}

fn check(texts: &[Vec<u32>], vocab_size: usize, options: &TableOptions) -> Result<()> {
    let TableOptions { min_order, max_order, max_bytes } = *options;
    let wrong = |name: &str, value: u64, needed: String| {
        Err(Error::Option { name: name.into(), value: value.to_string(), needed })
    };
    if !(1..=MAX_ORDER).contains(&max_order) {
        return wrong("max_order", max_order as u64, format!("1 to {MAX_ORDER}"));
    }
    if !(1..=max_order).contains(&min_order) {
        return wrong("min_order", min_order as u64, format!("1 to max_order, which is {max_order}"));
    }
    let least = ((max_order - min_order + 1) * BUCKET) as u64;
    if max_bytes < least {
        return wrong("max_bytes", max_bytes, format!("at least {least}"));
    }
    match texts.iter().flatten().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(Error::TokenId { id: u64::from(id), vocab_size }),
        None => Ok(()),
    }
}

/// The runs of `order` tokens that say something, the best first. `shorter` are the tables of the shorter ones from `least` on.
fn candidates(texts: &[Vec<u32>], order: usize, least: usize, shorter: &[(String, Vec<u8>)]) -> Vec<Candidate> {
    // Which text and where in it a run ends, by the run.
    let mut ends: Vec<(u64, u32, u32)> = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        for end in order..text.len() {
            ends.push((RunHash::of(&text[end - order..end]).0, number as u32, end as u32));
        }
    }
    ends.sort_unstable();
    let mut found = Vec::new();
    let mut followers = Vec::new();
    for group in ends.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() >= LEAST_COUNT) {
        followers.clear();
        followers.extend(group.iter().map(|&(_, text, end)| texts[text as usize][end as usize]));
        followers.sort_unstable();
        // The lowest of those that came equally often.
        let runs = followers.chunk_by(|a, b| a == b);
        let Some(best) = runs.reduce(|best, next| if next.len() > best.len() { next } else { best }) else { continue };
        let share = best.len() as f32 / (group.len() + 1) as f32;
        let (_, text, end) = group[0];
        let run = &texts[text as usize][end as usize - order..end as usize];
        let known = (least..order)
            .rev()
            .zip(shorter.iter().rev())
            .find_map(|(n, (_, table))| find(table, RunHash::of(&run[order - n..])));
        let as_good = known.is_some_and(|(token, sure)| token == best[0] && f32::from(sure) / 255.0 >= AS_GOOD * share);
        if share >= LEAST_CONFIDENCE && !as_good {
            let confidence = (share * 255.0).round().max(1.0) as u8;
            found.push(Candidate { hash: RunHash(group[0].0), token: best[0], confidence, hits: best.len() });
        }
    }
    found.sort_by(|a, b| b.hits.cmp(&a.hits).then(a.hash.0.cmp(&b.hash.0)));
    found
}

/// Puts runs, the best first, into at most so many buckets. Returns how many found room, and the entries.
fn fill(candidates: Vec<Candidate>, most: usize) -> (usize, Vec<u8>) {
    // Four fifths full: hardly a bucket overflows.
    let buckets = (candidates.len() * 5).div_ceil(16).clamp(1, most.max(1));
    let mut bytes = vec![0; buckets * BUCKET];
    let mut entries = 0;
    for Candidate { hash, token, confidence, .. } in candidates {
        let (bucket, check) = place(buckets, hash);
        let (places, _) = bytes[bucket * BUCKET..(bucket + 1) * BUCKET].as_chunks_mut::<ENTRY>();
        // Runs with the same mark cannot be told apart: the better one has it.
        let Some(entry) = places.iter_mut().find(|entry| entry[5] == 0 || entry[3..5] == check) else { continue };
        if entry[5] == 0 {
            let [a, b, c, _] = token.to_le_bytes();
            *entry = [a, b, c, check[0], check[1], confidence];
            entries += 1;
        }
    }
    (entries, bytes)
}
