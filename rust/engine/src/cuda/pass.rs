//! What a pass does, as kernels are told of it: `kernels/generate/pass.cuh`.

use bytemuck::{Pod, Zeroable};

use super::slots::Slots;
use crate::backend::{LogitsWanted, PassRow};
use crate::state::Slot;

/// Most tokens of a pass.
pub const MAX_TOKENS: usize = 512;

/// Three lists in one: of tokens, of rows, and of lines of logits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct PassEntry {
    /// Token i: its id.
    pub id: u32,
    /// Line i: the token whose logits it holds.
    pub line: u32,
    /// Row i: its first token.
    pub row: u32,
    unused: u32,
    /// Token i: address of the state before it; 0 where it follows the token before.
    pub from: u64,
    /// Token i: address of where the state after it goes; 0 if it is not kept.
    pub to: u64,
}

/// What precedes the entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct Head {
    tokens: u32,
    rows: u32,
    lines: u32,
    arrived: u32,
}

const _: () = assert!(size_of::<PassEntry>() == 32 && size_of::<Head>() == 16);

/// Bytes of the description of the longest pass.
pub const PASS_BYTES: usize = size_of::<Head>() + MAX_TOKENS * size_of::<PassEntry>();

/// The slot that takes the state after token `i` of a row.
fn kept(row: &PassRow<'_>, i: usize) -> Option<Slot> {
    match row.keep {
        [slot] => (i + 1 == row.tokens.len()).then_some(*slot),
        keep => Some(keep[i]),
    }
}

fn wants(row: &PassRow<'_>, i: usize) -> bool {
    match row.logits {
        LogitsWanted::None => false,
        LogitsWanted::Last => i + 1 == row.tokens.len(),
        LogitsWanted::All => true,
    }
}

/// The description of a pass, kept between passes so that none allocates.
#[derive(Debug, Default)]
pub struct Description {
    head: Head,
    entries: Vec<PassEntry>,
    bytes: Vec<u8>,
}

impl Description {
    /// Describes a pass. `arrived` is what the counter of barriers over the grid stands at.
    pub fn fill(&mut self, rows: &[PassRow<'_>], slots: &Slots, arrived: u32) {
        let Self { head, entries, .. } = self;
        entries.clear();
        *head = Head { arrived, ..Head::default() };
        entries.resize(rows.iter().map(|row| row.tokens.len()).sum(), PassEntry::default());
        let mut at = 0;
        for row in rows {
            let first = at;
            entries[head.rows as usize].row = first as u32;
            head.rows += 1;
            for (i, &id) in row.tokens.iter().enumerate() {
                let to = kept(row, i).map_or(0, |slot| slots.pointer(slot));
                if to != 0 {
                    // The last token that names a slot has it.
                    entries[first..at].iter_mut().filter(|entry| entry.to == to).for_each(|entry| entry.to = 0);
                }
                entries[at].id = id;
                entries[at].from = if i == 0 { slots.pointer(row.slot) } else { 0 };
                entries[at].to = to;
                if wants(row, i) {
                    entries[head.lines as usize].line = at as u32;
                    head.lines += 1;
                }
                at += 1;
            }
        }
        head.tokens = at as u32;
    }

    /// Tokens of the pass.
    pub fn tokens(&self) -> usize {
        self.head.tokens as usize
    }

    /// Rows of the pass.
    pub fn rows(&self) -> usize {
        self.head.rows as usize
    }

    /// Lines of logits that it gives.
    pub fn lines(&self) -> usize {
        self.head.lines as usize
    }

    /// What the card is told.
    pub fn bytes(&mut self) -> &[u8] {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytemuck::bytes_of(&self.head));
        self.bytes.extend_from_slice(bytemuck::cast_slice(&self.entries));
        &self.bytes
    }
}
