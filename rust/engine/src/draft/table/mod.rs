//! The table drafter: what mostly followed the last tokens in a training text.
//!
//! The table is a file, `ngram.safetensors` in the prophet's folder: for runs of a few tokens (orders 2 to 5, say) the most
//! likely next one and how likely that is. It is mapped, never copied, and a guess is a look into four lines of the cache. Runs are
//! known by hashes, so a wrong guess may come from another run: it costs time, as any wrong guess.
//!
//! The format. Metadata: `format` is `spikelet-ngram`, `version` is `1`, `vocab_size` the vocabulary. A tensor `order.N` for
//! runs of N tokens, U8 `[buckets, 4, 6]`: buckets of four entries of six bytes, which are the token (3 bytes, little-endian),
//! the lower 16 bits of the run's [hash](super::hash::RunHash) (2 bytes, little-endian) and the confidence in 255ths (0 is an
//! empty entry, and the rest of the bucket is empty too). The run's bucket is the upper 32 bits of its hash times the number of
//! buckets, shifted right by 32.

mod build;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hash::RunHash;
use super::{Draft, DraftRow, Drafter, Drawn, Source};
use crate::decode::RowId;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::weights::{Checkpoint, Dtype, SafetensorsFile, table_path};

pub use build::{OrderReport, TableOptions, build_table};

const FORMAT: &str = "spikelet-ngram";
const VERSION: &str = "1";
/// Longest runs of a table.
const MAX_ORDER: usize = 8;
const ENTRY: usize = 6;
const BUCKET: usize = 4 * ENTRY;

/// The token that a table's entries `order` hold for a run, and the confidence in 255ths.
fn find(entries: &[u8], hash: RunHash) -> Option<(u32, u8)> {
    let (bucket, check) = place(entries.len() / BUCKET, hash);
    let (entries, _) = entries[bucket * BUCKET..(bucket + 1) * BUCKET].as_chunks::<ENTRY>();
    let entry = entries.iter().take_while(|entry| entry[5] != 0).find(|entry| entry[3..5] == check)?;
    Some((u32::from_le_bytes([entry[0], entry[1], entry[2], 0]), entry[5]))
}

/// A run's bucket, and what its entry is known by.
fn place(buckets: usize, hash: RunHash) -> (usize, [u8; 2]) {
    let bucket = ((hash.0 >> 32) as u128 * buckets as u128) >> 32;
    (bucket as usize, (hash.0 as u16).to_le_bytes())
}

/// A table, mapped and checked.
#[derive(Debug)]
pub struct TableFile {
    file: SafetensorsFile,
    /// Orders and the names of their tensors, longest first.
    orders: Vec<(usize, String)>,
}

impl TableFile {
    /// Where the table of a model is, or would be.
    pub fn path(checkpoint: &Checkpoint) -> PathBuf {
        table_path(checkpoint)
    }

    /// The table in the model's folder, if there is one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of(model: &Model) -> Result<Option<Arc<Self>>> {
        let path = Self::path(model.checkpoint());
        if path.exists() { Self::open(&path, model.config().vocab_size).map(Some) } else { Ok(None) }
    }

    /// Opens a table for a vocabulary.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is no table of this version or for this vocabulary; [`Error::Tensor`] names the part that is
    /// not what it should be.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Arc<Self>> {
        let file = SafetensorsFile::open(path)?;
        let note = |key: &str| file.metadata().get(key).map_or("nothing", String::as_str);
        let vocabulary = vocab_size.to_string();
        for (key, needed) in [("format", FORMAT), ("version", VERSION), ("vocab_size", &vocabulary)] {
            if note(key) != needed {
                return Err(Error::format(path, format!("`{key}` is {}, needed {needed}", note(key))));
            }
        }
        let mut orders = Vec::new();
        for name in file.names() {
            let wrong = |reason: String| Err(Error::tensor(path, name, reason));
            let order = name.strip_prefix("order.").and_then(|order| order.parse().ok());
            let Some(order) = order.filter(|order| (1..=MAX_ORDER).contains(order)) else {
                return wrong(format!("found, needed `order.1` to `order.{MAX_ORDER}`"));
            };
            let view = file.get(name)?;
            if view.dtype != Dtype::U8 || view.shape.len() != 3 || view.shape[0] == 0 || view.shape[1..] != [4, ENTRY] {
                return wrong(format!("found {} {:?}, needed U8 [buckets, 4, {ENTRY}]", view.dtype.name(), view.shape));
            }
            let (entries, _) = view.bytes.as_chunks::<ENTRY>();
            let token = |entry: &[u8; ENTRY]| u32::from_le_bytes([entry[0], entry[1], entry[2], 0]);
            if let Some(bad) = entries.iter().position(|entry| entry[5] != 0 && token(entry) as usize >= vocab_size) {
                return wrong(format!("entry {bad} is token {}, of {vocab_size}", token(&entries[bad])));
            }
            orders.push((order, name.to_owned()));
        }
        orders.sort_by(|a, b| b.cmp(a));
        if orders.is_empty() {
            return Err(Error::format(path, "the table is empty"));
        }
        Ok(Arc::new(Self { file, orders }))
    }

    /// The most likely token after a text, of the longest run that the table knows, and how likely it is.
    pub fn next(&self, text: &[u32]) -> Option<(u32, f32)> {
        self.next_after(text.iter().rev().copied())
    }

    /// The same for a text from its last token backwards.
    fn next_after(&self, mut backwards: impl Iterator<Item = u32>) -> Option<(u32, f32)> {
        let mut hashes = [None; MAX_ORDER + 1];
        let mut hash = RunHash::default();
        for place in hashes.iter_mut().take(self.orders[0].0 + 1).skip(1) {
            let Some(token) = backwards.next() else { break };
            hash.add(token);
            *place = Some(hash);
        }
        let known = |(order, name): &(usize, String)| find(self.file.get(name).ok()?.bytes, hashes[*order]?);
        let (token, confidence) = self.orders.iter().find_map(known)?;
        Some((token, f32::from(confidence) / 255.0))
    }
}

/// Guesses from a [`TableFile`].
#[derive(Debug)]
pub struct Table {
    file: Arc<TableFile>,
}

impl Table {
    /// A drafter; any number of them may share a table.
    pub fn new(file: Arc<TableFile>) -> Self {
        Self { file }
    }
}

impl Drafter for Table {
    fn source(&self) -> Source {
        Source::Table
    }

    /// Nothing: the last tokens say it all.
    fn observe(&mut self, _: RowId, _: &[u32], _: &[f32]) {}

    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()> {
        for (i, row) in rows.iter_mut().enumerate() {
            while row.draft.tokens.len() < row.max_tokens && (row.draft.tokens.is_empty() || more(i, row.draft)) {
                let text = row.draft.tokens.iter().rev().chain(row.history.iter().rev()).copied();
                let Some((token, confidence)) = self.file.next_after(text) else { break };
                row.draft.source = Some(Source::Table);
                row.draft.tokens.push(token);
                row.draft.confidence.push(confidence);
                if row.distributions {
                    row.draft.drawn.push(Drawn::Certain);
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, _: RowId) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::super::testing::{draft, rows};
    use super::*;
    use crate::weights::{TensorView, save_safetensors};

    const FILE: &str = "ngram.safetensors";

    /// A table in a file that is gone when the test ends.
    fn table(texts: &[Vec<u32>], options: &TableOptions) -> (Arc<TableFile>, Vec<OrderReport>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let report = build_table(&path, texts, 1000, options, &mut |_, _| ControlFlow::Continue(())).expect("built");
        (TableFile::open(&path, 1000).expect("a table"), report)
    }

    fn text(seed: u32, n: usize) -> Vec<u32> {
        // A few words in changing order, so that some runs are certain and some are not.
        let words = [&[1, 2, 3, 4][..], &[1, 2, 5], &[9, 8, 7, 6, 5], &[4, 4]];
        let mut x = seed;
        let next = std::iter::repeat_with(|| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            words[(x >> 30) as usize]
        });
        next.flatten().copied().take(n).collect()
    }

    /// The definition: the token that mostly followed the longest run, if the run stood there twice at least.
    fn naive_next(texts: &[Vec<u32>], orders: std::ops::RangeInclusive<usize>, history: &[u32]) -> Option<u32> {
        orders.rev().filter(|&n| n <= history.len()).find_map(|n| {
            let run = &history[history.len() - n..];
            let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
            for window in texts.iter().flat_map(|text| text.windows(n + 1)) {
                if window[..n] == *run {
                    *counts.entry(window[n]).or_default() += 1;
                }
            }
            let (all, most) = (counts.values().sum::<usize>(), counts.values().copied().max().unwrap_or(0));
            // As sure as the builder asks for.
            (all >= 2 && most as f32 / (all + 1) as f32 >= 0.25)
                .then(|| counts.into_iter().find(|(_, count)| *count == most).map(|(token, _)| token))
                .flatten()
        })
    }

    #[test]
    fn guesses_are_what_mostly_followed() {
        let texts = [text(1, 3000), text(7, 500), vec![], vec![3]];
        let options = TableOptions { min_order: 1, max_order: 4, ..TableOptions::default() };
        let (table, report) = table(&texts, &options);
        assert_eq!(report.iter().map(|order| order.order).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let (mut hits, held_out) = (0, text(99, 400));
        for end in 0..held_out.len() {
            let found = table.next(&held_out[..end]).map(|(token, _)| token);
            assert_eq!(found, naive_next(&texts, 1..=4, &held_out[..end]), "after {:?}", &held_out[..end]);
            hits += usize::from(found == Some(held_out[end]));
        }
        assert!(hits > 200, "{hits} of 400");
    }

    #[test]
    fn lookups_are_chained() {
        let [row] = rows();
        let (table, _) = table(&[[1, 2, 3, 4, 5, 6, 7].repeat(20)], &TableOptions::default());
        let mut drafter = Table::new(table);
        let found = draft(&mut drafter, row, &[9, 3, 4], 9, |_| true);
        assert_eq!(found.tokens, [5, 6, 7, 1, 2, 3, 4, 5, 6]);
        assert_eq!((found.drawn, found.source), (vec![Drawn::Certain; 9], Some(Source::Table)));
        assert!(found.confidence.iter().all(|&sure| sure > 0.9), "{:?}", found.confidence);
        assert_eq!(draft(&mut drafter, row, &[3, 4], 9, |draft| draft.tokens.len() < 2).tokens, [5, 6]);
        assert!(draft(&mut drafter, row, &[4, 3], 9, |_| true).tokens.is_empty());
        assert!(draft(&mut drafter, row, &[4], 9, |_| true).tokens.is_empty());
    }

    #[test]
    fn a_table_has_a_size_and_keeps_what_comes_most() {
        let mut common = [1, 2, 3].repeat(50);
        common.extend((0..5000).map(|i| 10 + (i * i) % 983));
        let options = TableOptions { max_bytes: 4 * BUCKET as u64, ..TableOptions::default() };
        let (table, report) = table(&[common], &options);
        assert!(report.iter().map(|order| order.bytes).sum::<u64>() <= options.max_bytes);
        assert_eq!(table.next(&[1, 2]).map(|(token, _)| token), Some(3));
    }

    #[test]
    fn the_same_texts_give_the_same_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let built = |name: &str| {
            let path = folder.path().join(name);
            let go_on = &mut |_, _| ControlFlow::Continue(());
            build_table(&path, &[text(3, 2000)], 1000, &TableOptions::default(), go_on).expect("built");
            std::fs::read(path).expect("a file")
        };
        assert!(built("a") == built("b"));
        let stop = &mut |_, _| ControlFlow::Break(());
        let stopped = build_table(&folder.path().join("c"), &[text(3, 9)], 1000, &TableOptions::default(), stop);
        assert!(matches!(stopped, Err(Error::Cancelled)) && !folder.path().join("c").exists());
    }

    #[test]
    fn what_is_no_table_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let good = [("format", FORMAT), ("version", VERSION), ("vocab_size", "100")];
        let refused =
            |notes: &[(&str, &str)], name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8], expected: &str| {
                let metadata = notes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
                save_safetensors(&path, &[TensorView { name, dtype, shape, bytes }], &metadata).expect("written");
                let error = TableFile::open(&path, 100).expect_err("refused").to_string();
                assert!(error.contains(expected) && error.contains(FILE), "{error}");
            };
        let entries = [0; BUCKET];
        let shape = [1, 4, ENTRY];
        refused(&good[1..], "order.2", Dtype::U8, &shape, &entries, "`format` is nothing, needed spikelet-ngram");
        refused(
            &[good[0], ("version", "2"), good[2]],
            "order.2",
            Dtype::U8,
            &shape,
            &entries,
            "`version` is 2, needed 1",
        );
        refused(&[good[0], good[1], ("vocab_size", "9")], "order.2", Dtype::U8, &shape, &entries, "is 9, needed 100");
        refused(&good, "order.9", Dtype::U8, &shape, &entries, "`order.9`: found, needed");
        refused(&good, "other", Dtype::U8, &shape, &entries, "`other`: found, needed");
        refused(&good, "order.2", Dtype::I8, &shape, &entries, "found I8 [1, 4, 6], needed U8");
        refused(&good, "order.2", Dtype::U8, &[4, 6], &entries, "found U8 [4, 6], needed U8 [buckets, 4, 6]");
        refused(&good, "order.2", Dtype::U8, &[0, 4, 6], &[], "found U8 [0, 4, 6], needed U8 [buckets, 4, 6]");
        let mut beyond = entries;
        beyond[6..12].copy_from_slice(&[100, 0, 0, 1, 2, 255]);
        refused(&good, "order.2", Dtype::U8, &shape, &beyond, "entry 1 is token 100, of 100");
        assert!(TableFile::open(&folder.path().join("missing"), 100).is_err());
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().join("table");
        let build = |texts: &[Vec<u32>], options: TableOptions| {
            let go_on = &mut |_, _| ControlFlow::Continue(());
            build_table(&path, texts, 10, &options, go_on).expect_err("refused").to_string()
        };
        let good = TableOptions::default();
        assert!(build(&[vec![1]], TableOptions { min_order: 0, ..good }).contains("min_order"));
        assert!(build(&[vec![1]], TableOptions { min_order: 6, ..good }).contains("min_order"));
        assert!(build(&[vec![1]], TableOptions { max_order: 9, ..good }).contains("max_order"));
        assert!(build(&[vec![1]], TableOptions { max_bytes: 90, ..good }).contains("max_bytes"));
        assert!(build(&[vec![1, 10]], good).contains("token id 10"));
        let name = file.path().display().to_string();
        assert!(build(&[vec![1, 2, 3]], good).contains(&name), "a file is no folder");
    }
}
