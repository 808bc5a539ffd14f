//! New entries of MAINTAINERS, each put in its alphabetical place.

use anyhow::{Result, anyhow, bail};

use crate::host::git::Identity;

/// `maintainers` with every entry of `overlay` inserted; an entry that names nobody is maintained
/// by whoever signs the series.
pub fn insert(maintainers: &str, overlay: &str, identity: &Identity) -> Result<String> {
    let mut text = maintainers.to_owned();
    for entry in overlay
        .split("\n\n")
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
    {
        text = insert_one(&text, &complete(entry, identity)?)?;
    }
    Ok(text)
}

fn complete(entry: &str, identity: &Identity) -> Result<String> {
    let (title, fields) = entry
        .split_once('\n')
        .ok_or_else(|| anyhow!("the MAINTAINERS entry `{entry}` has a title and nothing else"))?;
    if is_field(title) || !fields.lines().all(is_field) {
        bail!("the MAINTAINERS entry `{title}` is not a title followed by `X:\\t` lines");
    }
    if !identity.signs || fields.lines().any(|line| line.starts_with("M:")) {
        return Ok(entry.to_owned());
    }
    Ok(format!("{title}\nM:\t{}\n{fields}", identity.address()))
}

fn is_field(line: &str) -> bool {
    line.len() > 3 && line.as_bytes()[1] == b':' && line.as_bytes()[2] == b'\t'
}

fn insert_one(text: &str, entry: &str) -> Result<String> {
    let title = entry.lines().next().unwrap_or_default();
    let titles = titles(text);
    if titles.iter().any(|(_, other)| *other == title) {
        bail!("the base's MAINTAINERS already has `{title}`");
    }
    let at =
        place(&titles, title).ok_or_else(|| anyhow!("the base's MAINTAINERS has no entries"))?;
    Ok(format!("{}{entry}\n\n{}", &text[..at], &text[at..]))
}

/// Where a new entry goes. The file is not perfectly sorted, so it is the place that has the fewest
/// entries on the wrong side of it; "THE REST" stays last.
fn place(titles: &[(usize, &str)], new: &str) -> Option<usize> {
    let mut wrong = titles.iter().filter(|(_, title)| *title < new).count();
    let mut best = (wrong, titles.first()?.0);
    for pair in titles.windows(2) {
        if pair[0].1 < new {
            wrong -= 1;
        } else {
            wrong += 1;
        }
        if wrong < best.0 {
            best = (wrong, pair[1].0);
        }
    }
    Some(best.1)
}

/// Offset and text of every entry's title: a line after an empty one, before an `X:` line.
fn titles(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut offset = 0;
    let mut after_empty = false;
    let mut lines = text.split_inclusive('\n').peekable();
    while let Some(line) = lines.next() {
        let bare = line.trim_end();
        let next_is_field = lines.peek().is_some_and(|next| is_field(next.trim_end()));
        if after_empty
            && next_is_field
            && bare.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !is_field(bare)
        {
            found.push((offset, bare));
        }
        after_empty = bare.is_empty();
        offset += line.len();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "\
Maintainers List
----------------

	M: *Mail* patches to

3C59X NETWORK DRIVER
M:\tA <a@a>

VFIO DRIVER
M:\tB <b@b>
F:\tdrivers/vfio/

VFIO QAT PCI DRIVER
M:\tB <b@b>

VGA_SWITCHEROO
M:\tC <c@c>

THE REST
M:\tD <d@d>
";

    fn me() -> Identity {
        Identity {
            name: "N".to_owned(),
            email: "n@n".to_owned(),
            signs: true,
        }
    }

    #[test]
    fn entry_is_put_between_its_neighbours() {
        let out = insert(BASE, "VFIO [RUST]\nL:\tkvm@x\nF:\trust/\n", &me()).unwrap();
        let expected = "VFIO QAT PCI DRIVER\nM:\tB <b@b>\n\nVFIO [RUST]\nM:\tN <n@n>\nL:\tkvm@x\nF:\trust/\n\nVGA_SWITCHEROO\n";
        assert!(out.contains(expected), "{out}");
    }

    #[test]
    fn named_maintainer_is_kept_and_several_entries_land() {
        let out = insert(BASE, "AAA\nM:\tE <e@e>\n\nZZZ\nF:\tz\n", &me()).unwrap();
        assert!(
            out.contains("\n\nAAA\nM:\tE <e@e>\n\nVFIO DRIVER\n"),
            "{out}"
        );
        assert!(
            out.contains("\n\nZZZ\nM:\tN <n@n>\nF:\tz\n\nTHE REST\n"),
            "{out}"
        );
    }

    #[test]
    fn misplaced_neighbours_do_not_mislead() {
        // As in the kernel's own file, where single entries are out of order.
        let base =
            "H\n\nA\nF:\ta\n\nZ\nF:\tz\n\nB\nF:\tb\n\nC\nF:\tc\n\nX\nF:\tx\n\nTHE REST\nF:\tr\n";
        let out = insert(base, "D\nM:\tE <e@e>\n", &me()).unwrap();
        assert!(
            out.contains("\n\nC\nF:\tc\n\nD\nM:\tE <e@e>\n\nX\n"),
            "{out}"
        );
    }

    #[test]
    fn duplicates_and_malformed_entries_are_refused() {
        assert!(insert(BASE, "VFIO DRIVER\nF:\tx\n", &me()).is_err());
        assert!(insert(BASE, "VFIO X\nnonsense\n", &me()).is_err());
        assert!(insert(BASE, "VFIO X\n", &me()).is_err());
    }
}
