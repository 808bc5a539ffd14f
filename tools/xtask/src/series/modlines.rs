//! `mod x;` lands with the file it names.
//!
//! A new Rust file may declare modules that a later commit brings. Until that commit, the items
//! that need the module (`mod x;` and `use self::x::..`), with the comments and attributes directly
//! above them, are left out, so that every commit builds.

use std::collections::BTreeMap;

use anyhow::Result;

use super::assembly::{Read, patched};
use super::overlay::Commit;

/// New Rust files that have landed and not been patched yet, and where each file lands.
pub struct Declaring<'a> {
    place: BTreeMap<&'a str, usize>,
    /// Their text, and what is staged of it.
    files: BTreeMap<&'a str, (String, String)>,
    landed: usize,
}

impl<'a> Declaring<'a> {
    pub fn new(commits: &'a [Commit]) -> Declaring<'a> {
        let places = commits.iter().enumerate();
        let places = places.flat_map(|(at, one)| one.paths.iter().map(move |path| (&**path, at)));
        Declaring {
            place: places.collect(),
            files: BTreeMap::new(),
            landed: 0,
        }
    }

    /// What the files are once this commit, the next in turn, has landed.
    pub fn after(&mut self, commit: &'a Commit, read: Read<'_>) -> Result<Vec<(String, String)>> {
        let now = self.landed;
        self.landed += 1;
        for path in &commit.paths {
            if let Some((target, _)) = patched(path) {
                self.files.remove(target);
            } else if path.ends_with(".rs")
                && let Ok(text) = String::from_utf8(read(path)?.0)
            {
                self.files.insert(path, (text.clone(), text));
            }
        }
        let mut changed = Vec::new();
        for (path, (text, staged)) in &mut self.files {
            let present = |module: &str| {
                let mut files = candidates(path, module).into_iter();
                let at = files.find_map(|file| self.place.get(file.as_str()).copied());
                at.is_none_or(|at| at <= now)
            };
            let state = without_absent(text, &present);
            if state != *staged {
                changed.push((path.to_string(), state.clone()));
                *staged = state;
            }
        }
        Ok(changed)
    }
}

/// A module that a file of the overlay declares, and whether the commit at hand has its file.
pub type Present<'a> = &'a dyn Fn(&str) -> bool;

/// `source` without the items whose module is not present.
pub fn without_absent(source: &str, present: Present<'_>) -> String {
    let lines: Vec<&str> = source.lines().collect();
    let mut kept: Vec<&str> = Vec::with_capacity(lines.len());
    let mut index = 0;
    while index < lines.len() {
        let end = item_end(&lines, index);
        let absent = module_of(lines[index]).is_some_and(|name| !present(name));
        if !absent {
            kept.extend(&lines[index..end]);
            index = end;
            continue;
        }
        while kept.last().is_some_and(|line| belongs_below(line)) {
            kept.pop();
        }
        index = end;
        // The blank lines around what is gone become one, and none where nothing precedes.
        if kept.last().is_none_or(|line| line.is_empty()) {
            while index < lines.len() && lines[index].is_empty() {
                index += 1;
            }
        }
    }
    while kept.last().is_some_and(|line| line.is_empty()) {
        kept.pop();
    }
    kept.iter().flat_map(|line| [line, "\n"]).collect()
}

/// Where the file of module `name`, declared in `path`, may be.
pub fn candidates(path: &str, name: &str) -> [String; 2] {
    let (dir, file) = path
        .rsplit_once('/')
        .map_or(("", path), |(dir, file)| (dir, file));
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let join = |parts: &[&str]| {
        parts
            .iter()
            .filter(|part| !part.is_empty())
            .copied()
            .collect::<Vec<_>>()
            .join("/")
    };
    let file = format!("{name}.rs");
    [join(&[dir, stem, &file]), join(&[dir, &file])]
}

/// A `use self::x` may go on over several lines; everything else here is one line.
fn item_end(lines: &[&str], start: usize) -> usize {
    if module_of(lines[start]).is_none() {
        return start + 1;
    }
    let length = lines[start..]
        .iter()
        .position(|line| line.trim_end().ends_with(';'));
    length.map_or(start + 1, |length| start + length + 1)
}

/// The module that the item starting on this line needs.
fn module_of(line: &str) -> Option<&str> {
    let item = visibility_stripped(line);
    if let Some(rest) = item.strip_prefix("use self::") {
        let name = identifier(rest)?;
        return rest[name.len()..].starts_with("::").then_some(name);
    }
    let rest = item.strip_prefix("mod ")?;
    let name = identifier(rest)?;
    rest[name.len()..].trim_end().eq(";").then_some(name)
}

fn visibility_stripped(line: &str) -> &str {
    let Some(rest) = line.strip_prefix("pub") else {
        return line;
    };
    match rest.strip_prefix('(') {
        Some(restricted) => restricted.split_once(") ").map_or(line, |(_, item)| item),
        None => rest.strip_prefix(' ').unwrap_or(line),
    }
}

fn identifier(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

/// Doc comments and attributes; a plain comment above an item speaks of it as well.
fn belongs_below(line: &str) -> bool {
    (line.starts_with("//") && !line.starts_with("//!") && !line.starts_with("// SPDX"))
        || line.starts_with("#[")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
// SPDX-License-Identifier: GPL-2.0

//! Title.

/// Doc of a.
#[cfg(CONFIG_A)]
pub mod a;
mod b;

pub use self::a::A;
pub use self::b::{
    B,
    C, //
};

fn f() {}
";

    #[test]
    fn all_present_changes_nothing() {
        assert_eq!(without_absent(SOURCE, &|_| true), SOURCE);
    }

    #[test]
    fn absent_module_goes_with_its_docs_and_uses() {
        let expected = "\
// SPDX-License-Identifier: GPL-2.0

//! Title.

mod b;

pub use self::b::{
    B,
    C, //
};

fn f() {}
";
        assert_eq!(without_absent(SOURCE, &|name| name == "b"), expected);
    }

    #[test]
    fn nothing_is_left_of_empty_groups() {
        let expected = "// SPDX-License-Identifier: GPL-2.0\n\n//! Title.\n\nfn f() {}\n";
        assert_eq!(without_absent(SOURCE, &|_| false), expected);
    }

    #[test]
    fn inline_modules_and_words_are_not_declarations() {
        let source = "mod tests {\n}\nfn mod_x() {}\nuse self::a;\n    mod inner;\n";
        assert_eq!(without_absent(source, &|_| false), source);
    }

    #[test]
    fn files_of_a_module() {
        assert_eq!(
            candidates("rust/kernel/vfio.rs", "pci"),
            ["rust/kernel/vfio/pci.rs", "rust/kernel/pci.rs"]
        );
        assert_eq!(candidates("lib.rs", "x"), ["lib/x.rs", "x.rs"]);
    }
}
