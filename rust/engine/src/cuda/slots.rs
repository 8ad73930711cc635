//! State slots in a card's memory.
//!
//! Memory grows by pieces, and a slot stays where it is: kernels are told addresses of slots.

use std::sync::Arc;

use super::driver::{Buffer, Device};
use crate::error::{Error, Result};
use crate::state::{Slot, StateLayout};

/// Slots of the first piece; each later one doubles what there is.
const FIRST: usize = 4;
/// Most numbers of a piece of several slots.
const LARGEST: usize = 64 << 20;

/// Slots of one layout. See [`StatePool`](crate::state::StatePool) for those of the CPU.
pub struct Slots {
    device: Arc<Device>,
    len: usize,
    pieces: Vec<Buffer<f32>>,
    /// Piece and place of every slot.
    places: Vec<(usize, usize)>,
    free: Vec<Slot>,
    /// The state before the first token.
    fresh: Buffer<f32>,
    /// NaN, for slots that were given back, in debug builds.
    poison: Option<Buffer<f32>>,
}

impl Slots {
    pub fn new(device: &Arc<Device>, layout: &StateLayout) -> Result<Self> {
        let len = layout.len();
        let mut fresh = vec![f32::NAN; len];
        let poison = if cfg!(debug_assertions) { Some(device.upload(&fresh)?) } else { None };
        layout.fill_fresh(&mut fresh);
        let (pieces, places, free) = Default::default();
        Ok(Self { fresh: device.upload(&fresh)?, device: Arc::clone(device), len, pieces, places, free, poison })
    }

    /// Takes a slot holding the state before the first token. Nothing has changed where there is no memory for it.
    pub fn alloc(&mut self) -> Result<Slot> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let slot = *self.free.last().expect("there is one now");
        self.reset(slot)?;
        self.free.pop();
        Ok(slot)
    }

    /// Gives a slot back.
    pub fn free(&mut self, slot: Slot) {
        debug_assert!(!self.free.contains(&slot), "slot {slot} was given back twice");
        if let Some(poison) = &self.poison {
            let (piece, at) = self.places[slot as usize];
            // A lost device has forgotten it anyway.
            let _ = self.device.copy(poison, 0, &self.pieces[piece], at, self.len);
        }
        self.free.push(slot);
    }

    /// Puts the state before the first token into a slot.
    pub fn reset(&self, slot: Slot) -> Result<()> {
        let (piece, at) = self.places[slot as usize];
        self.device.copy(&self.fresh, 0, &self.pieces[piece], at, self.len)
    }

    /// Copies one slot over another.
    pub fn copy(&self, from: Slot, to: Slot) -> Result<()> {
        let ((from, from_at), (to, to_at)) = (self.places[from as usize], self.places[to as usize]);
        self.device.copy(&self.pieces[from], from_at, &self.pieces[to], to_at, self.len)
    }

    /// Copies a slot's content out.
    pub fn read(&self, slot: Slot) -> Result<Vec<f32>> {
        let (piece, at) = self.places[slot as usize];
        let mut state = vec![0.0; self.len];
        self.device.read(&self.pieces[piece], at, &mut state)?;
        Ok(state)
    }

    /// Replaces the content of a slot with a state that was read before.
    pub fn write(&self, slot: Slot, state: &[f32]) -> Result<()> {
        if state.len() != self.len {
            return Err(Error::State {
                reason: format!("it holds {} numbers, this model's state has {}", state.len(), self.len),
            });
        }
        if let Some(i) = state.iter().position(|x| x.is_nan()) {
            return Err(Error::State { reason: format!("number {i} is NaN") });
        }
        let (piece, at) = self.places[slot as usize];
        self.device.write(&self.pieces[piece], at, state)
    }

    /// Where a slot lies on the card.
    pub fn pointer(&self, slot: Slot) -> u64 {
        let (piece, at) = self.places[slot as usize];
        self.pieces[piece].pointer_at(at)
    }

    /// Takes memory for as many slots as there are, or for one if there is no room for so many.
    fn grow(&mut self) -> Result<()> {
        let wanted = self.places.len().max(FIRST).min((LARGEST / self.len.max(1)).max(1));
        let (count, piece) = match self.device.zeros(wanted * self.len) {
            Ok(piece) => (wanted, piece),
            Err(_) => (1, self.device.zeros(self.len)?),
        };
        let (piece_number, first) = (self.pieces.len(), self.places.len());
        self.pieces.push(piece);
        self.places.extend((0..count).map(|i| (piece_number, i * self.len)));
        // The first of them is taken first; room for all to come back.
        self.free.reserve(self.places.len());
        self.free.extend((first..first + count).rev().map(|slot| slot as Slot));
        Ok(())
    }
}
