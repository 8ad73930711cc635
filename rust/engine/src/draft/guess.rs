//! How a drafter with a distribution of its own draws from it.

use super::{DraftRow, Drawn, Source};
use crate::error::Result;
use crate::sampler::{Line, Logprobs, Workspace};

/// Draws the next token of a row's draft from a line of logits, as the row wishes.
///
/// The confidence is the probability that the logits alone, without settings, give to the drawn token; or to the most probable
/// one, where it must be known before.
///
/// # Errors
/// Those of [`Sampler::distribution`](crate::sampler::Sampler::distribution). The draft is as it was.
pub(super) fn guess(row: &mut DraftRow<'_>, source: Source, line: Line<'_>, work: &mut Workspace) -> Result<()> {
    let DraftRow { sampler, shared_noise, distributions, ref mut draft, .. } = *row;
    let index = draft.tokens.len();
    let position = row.position + index as u64;
    let probs = Logprobs::new(work.level(), line.logits);
    let (id, drawn) = if shared_noise && !distributions {
        (sampler.sample(line, position, work)?, None)
    } else {
        let (id, dist) = if shared_noise {
            sampler.drawn(line, position, work)?
        } else {
            let dist = sampler.distribution(line, work)?;
            (dist.draw(sampler.draft_uniform(row.position, index)), dist)
        };
        (id, distributions.then(|| Drawn::From(dist.ids.to_vec(), dist.probs.to_vec())))
    };
    let sure = if shared_noise {
        match line.ids {
            None => Some(id as usize),
            Some(ids) => ids.binary_search(&id).ok(),
        }
    } else {
        (0..line.logits.len()).max_by(|&a, &b| line.logits[a].total_cmp(&line.logits[b]))
    };
    draft.source = Some(source);
    draft.tokens.push(id);
    draft.confidence.push(sure.map_or(0.0, |index| probs.of(index as u32).exp()));
    draft.drawn.extend(drawn);
    Ok(())
}
