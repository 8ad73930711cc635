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

/// Some tokens of one row of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    row: &'a PassRow<'a>,
    start: usize,
    end: usize,
}

impl Piece<'_> {
    /// The slot that holds the state before the piece. Where a row is cut and keeps only its last state, that slot holds the state in
    /// between.
    fn from(&self) -> Slot {
        match self.start {
            0 => self.row.slot,
            _ if self.row.keep.len() == 1 => self.row.keep[0],
            start => self.row.keep[start - 1],
        }
    }

    /// The slot that takes the state after a token.
    fn to(&self, token: usize) -> Option<Slot> {
        match self.row.keep {
            [slot] => (token + 1 == self.end).then_some(*slot),
            keep => Some(keep[token]),
        }
    }

    fn wants(&self, token: usize) -> bool {
        match self.row.logits {
            LogitsWanted::None => false,
            LogitsWanted::Last => token + 1 == self.row.tokens.len(),
            LogitsWanted::All => true,
        }
    }
}

/// Cuts rows into passes of at most `most` tokens, in order. A row may go on in the next pass.
pub fn cut<'a>(rows: &'a [PassRow<'a>], most: usize) -> Vec<Vec<Piece<'a>>> {
    let mut passes = Vec::new();
    let (mut pass, mut room) = (Vec::new(), most);
    for row in rows {
        let mut start = 0;
        while start < row.tokens.len() {
            let end = row.tokens.len().min(start + room);
            pass.push(Piece { row, start, end });
            room -= end - start;
            start = end;
            if room == 0 {
                passes.push(std::mem::take(&mut pass));
                room = most;
            }
        }
    }
    if !pass.is_empty() {
        passes.push(pass);
    }
    passes
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
    pub fn fill(&mut self, pieces: &[Piece<'_>], slots: &Slots, arrived: u32) {
        let Self { head, entries, .. } = self;
        entries.clear();
        *head = Head { arrived, ..Head::default() };
        entries.resize(pieces.iter().map(|piece| piece.end - piece.start).sum(), PassEntry::default());
        let mut at = 0;
        for piece in pieces {
            let first = at;
            entries[head.rows as usize].row = first as u32;
            head.rows += 1;
            for token in piece.start..piece.end {
                let to = piece.to(token).map_or(0, |slot| slots.pointer(slot));
                if to != 0 {
                    // The last token that names a slot has it.
                    entries[first..at].iter_mut().filter(|entry| entry.to == to).for_each(|entry| entry.to = 0);
                }
                entries[at].id = piece.row.tokens[token];
                entries[at].from = if token == piece.start { slots.pointer(piece.from()) } else { 0 };
                entries[at].to = to;
                if piece.wants(token) {
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
