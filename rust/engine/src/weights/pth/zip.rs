//! The part of the zip format that `torch.save` writes: members that are stored, not compressed, so that they can be used where they lie.
//!
//! Sizes and places come from the directory at the end; every one is checked against the file. Compressed, encrypted and split archives are refused.

use std::collections::BTreeMap;
use std::ops::Range;

/// Why an archive was refused.
type Refused<T> = Result<T, String>;

const END: &[u8] = b"PK\x05\x06";
const END_LENGTH: usize = 22;
const END64: &[u8] = b"PK\x06\x06";
const END64_LENGTH: usize = 56;
const LOCATOR64: &[u8] = b"PK\x06\x07";
const LOCATOR64_LENGTH: usize = 20;
const MEMBER: &[u8] = b"PK\x01\x02";
const MEMBER_LENGTH: usize = 46;
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_LENGTH: usize = 30;

/// Whether a file begins as zip archives do.
pub(super) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL)
}

/// Where the members of an archive lie.
pub(super) fn members(bytes: &[u8]) -> Refused<BTreeMap<&str, Range<usize>>> {
    let directory = directory(bytes)?;
    let mut members = BTreeMap::new();
    let mut rest = &bytes[directory.clone()];
    while !rest.is_empty() {
        let header = Header::parse(rest)?;
        let name = std::str::from_utf8(header.name).map_err(|_| "a member's name is not UTF-8")?;
        if header.method != 0 || header.flags & 1 != 0 {
            return Err(format!(
                "its member `{name}` is compressed or encrypted, which torch.save never does; save it again with torch"
            ));
        }
        if !name.ends_with('/') {
            let place = header
                .place(bytes, directory.start)
                .ok_or_else(|| format!("its member `{name}` lies outside the file"))?;
            if members.insert(name, place).is_some() {
                return Err(format!("its member `{name}` appears twice"));
            }
        }
        rest = &rest[header.length..];
    }
    Ok(members)
}

/// Where the directory lies.
fn directory(bytes: &[u8]) -> Refused<Range<usize>> {
    // The end record stands before a comment of at most 65535 bytes.
    let from = bytes.len().saturating_sub(END_LENGTH + 0xffff);
    let end = (from..=bytes.len().saturating_sub(END_LENGTH))
        .rev()
        .find(|&at| {
            bytes[at..].starts_with(END) && at + END_LENGTH + usize::from(u16_at(&bytes[at..], 20)) == bytes.len()
        })
        .ok_or("the archive's directory is missing: the file is truncated")?;
    let record = &bytes[end..];
    let (mut disks, mut size, mut start) =
        (u64::from(u16_at(record, 4)), u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let mut limit = end;
    // Large archives have a second record with wider numbers, and a pointer to it just before this one.
    if let Some(locator) = end.checked_sub(LOCATOR64_LENGTH).map(|at| &bytes[at..end])
        && locator.starts_with(LOCATOR64)
    {
        let wide = usize::try_from(u64_at(locator, 8)).ok().filter(|&at| at <= end);
        let record = wide.and_then(|at| bytes[at..end].split_at_checked(END64_LENGTH));
        let (Some(at), Some((record, _))) = (wide, record.filter(|(r, _)| r.starts_with(END64))) else {
            return Err("the archive's second end record is not where it should be".into());
        };
        (disks, size, start) = (u64::from(u32_at(record, 16)), u64_at(record, 40), u64_at(record, 48));
        limit = at;
    }
    if disks != 0 {
        return Err("the archive is split over several files".into());
    }
    let place = start.checked_add(size).filter(|&end| end <= limit as u64);
    place.map(|end| start as usize..end as usize).ok_or_else(|| "the archive's directory lies outside the file".into())
}

/// One entry of the directory.
struct Header<'a> {
    flags: u16,
    method: u16,
    size: u64,
    /// Place of the local header.
    local: u64,
    name: &'a [u8],
    /// Bytes of the entry itself.
    length: usize,
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Refused<Header<'a>> {
        let broken = || "the archive's directory is broken".to_owned();
        if bytes.len() < MEMBER_LENGTH || !bytes.starts_with(MEMBER) {
            return Err(broken());
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(bytes, at)));
        let length = MEMBER_LENGTH + name + extra + comment;
        if bytes.len() < length {
            return Err(broken());
        }
        let (name, rest) = bytes[MEMBER_LENGTH..].split_at(name);
        let [packed, size, local] = [20, 24, 42].map(|at| u64::from(u32_at(bytes, at)));
        let [packed, size, local] = widen(&rest[..extra], [size, packed, local]).ok_or_else(broken)?;
        let method = u16_at(bytes, 10);
        if method == 0 && packed != size {
            return Err(broken());
        }
        Ok(Header { flags: u16_at(bytes, 8), method, size, local, name, length })
    }

    /// Where the member's bytes lie: behind its local header and before the directory.
    fn place(&self, bytes: &[u8], directory: usize) -> Option<Range<usize>> {
        let local = usize::try_from(self.local).ok()?;
        let header = bytes.get(local..local.checked_add(LOCAL_LENGTH)?)?;
        if !header.starts_with(LOCAL) {
            return None;
        }
        let start = local + LOCAL_LENGTH + usize::from(u16_at(header, 26)) + usize::from(u16_at(header, 28));
        let end = start.checked_add(usize::try_from(self.size).ok()?)?;
        (end <= directory).then_some(start..end)
    }
}

/// Numbers (size, packed size, place) that do not fit into 32 bits stand in an extra field, in this order, only those that do not fit.
/// Gives packed size, size, place.
fn widen(mut extra: &[u8], mut numbers: [u64; 3]) -> Option<[u64; 3]> {
    let wide = |n: &u64| *n == u64::from(u32::MAX);
    if numbers.iter().any(wide) {
        let field = loop {
            let (head, rest) = extra.split_at_checked(4)?;
            let (field, rest) = rest.split_at_checked(usize::from(u16_at(head, 2)))?;
            if u16_at(head, 0) == 1 {
                break field;
            }
            extra = rest;
        };
        let mut values = field.as_chunks::<8>().0.iter().map(|&b| u64::from_le_bytes(b));
        for number in numbers.iter_mut().filter(|n| wide(n)) {
            *number = values.next()?;
        }
    }
    let [size, packed, local] = numbers;
    Some([packed, size, local])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive whose one member has its numbers in the wide fields, as archives above 4 GiB do.
    fn wide(size: u64, local: u64, directory: u64) -> Vec<u8> {
        let mut file = b"PK\x03\x04".to_vec();
        file.extend([0; 22]);
        file.extend([1, 0, 0, 0]);
        file.extend(b"aDATA");
        let start = file.len();
        file.extend(MEMBER);
        file.extend([0; 16]);
        file.extend([0xff; 8]);
        // Lengths of name, extra and comment; disk and attributes; place.
        file.extend([1, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([0xff; 4]);
        file.push(b'a');
        // A field to pass over, then the wide numbers.
        file.extend([9, 9, 0, 0, 1, 0, 24, 0]);
        for number in [size, size, local] {
            file.extend(number.to_le_bytes());
        }
        let (end, length) = (file.len() as u64, (file.len() - start) as u64);
        file.extend(END64);
        file.extend([0; 36]);
        file.extend(length.to_le_bytes());
        file.extend(directory.to_le_bytes());
        file.extend(LOCATOR64);
        file.extend([0; 4]);
        file.extend(end.to_le_bytes());
        file.extend([0; 4]);
        file.extend(END);
        file.extend([0, 0, 0, 0]);
        file.extend([0xff; 12]);
        file.extend([0, 0]);
        file
    }

    #[test]
    fn wide_numbers_are_read_and_checked() {
        let file = wide(4, 0, 35);
        let members = members(&file).expect("a sound archive");
        assert_eq!(file[members["a"].clone()], *b"DATA");
        let refused =
            |size, local, directory| super::members(&wide(size, local, directory)).expect_err("must be refused");
        for (size, local) in [(5, 0), (u64::MAX, 0), (4, 1), (4, u64::MAX), (u64::MAX - 35, 0)] {
            assert_eq!(refused(size, local, 35), "its member `a` lies outside the file");
        }
        assert_eq!(refused(4, 0, u64::MAX), "the archive's directory lies outside the file");
        assert_eq!(refused(4, 0, 34), "the archive's directory is broken");
        let mut file = wide(4, 0, 35);
        let locator = file.len() - END_LENGTH - LOCATOR64_LENGTH;
        file[locator + 8] = 0xff;
        assert_eq!(
            super::members(&file).expect_err("must be refused"),
            "the archive's second end record is not where it should be"
        );
    }
}
