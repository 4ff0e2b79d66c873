//! The archive that a kernel unpacks as its first file system: cpio in the "newc" form, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` has it.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under way. Folders come by themselves, before what is in them.
pub(super) struct Archive<W> {
    out: W,
    entries: u32,
    folders: BTreeSet<PathBuf>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            entries: 0,
            folders: BTreeSet::new(),
        }
    }

    /// A file that may be read and run by everybody; `path` is absolute.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// A character device.
    pub(super) fn device(&mut self, path: &Path, major: u32, minor: u32) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        let mut missing: Vec<_> = path
            .ancestors()
            .skip(1)
            .filter(|folder| *folder != Path::new("/"))
            .filter(|folder| self.folders.insert((*folder).to_owned()))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        for folder in missing {
            self.entry(&folder, FOLDER, (0, 0), &[])?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let path = path.as_os_str().as_encoded_bytes();
        let name = path.strip_prefix(b"/").unwrap_or(path);
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other("a file of an archive has less than 4 GiB"))?;
        self.entries += 1;
        let links = 1;
        let name_size = name.len() as u32 + 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name)?;
        self.out.write_all(b"\0")?;
        self.pad(110 + name_size)?;
        self.out.write_all(content)?;
        self.pad(size)
    }

    /// Header with name, and content, each end at a multiple of four bytes.
    fn pad(&mut self, length: u32) -> io::Result<()> {
        let missing = length.next_multiple_of(4) - length;
        self.out.write_all(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_once_and_before_their_files() {
        let mut archive = Archive::new(Vec::new());
        archive
            .file(Path::new("/a/b/x"), b"12345")
            .expect("memory takes everything");
        archive
            .device(Path::new("/a/y"), 5, 1)
            .expect("memory takes everything");
        let bytes = archive.finish().expect("memory takes everything");
        assert_eq!(bytes.len() % 4, 0);

        let number = |at: usize| {
            let digits = std::str::from_utf8(&bytes[at..at + 8]).expect("digits");
            u32::from_str_radix(digits, 16).expect("digits")
        };
        let mut at = 0;
        let mut found = Vec::new();
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "entry at {at}");
            let [mode, size, major, minor, name] =
                [1, 6, 9, 10, 11].map(|field| number(at + 6 + 8 * field));
            let start = at + 110;
            let text = &bytes[start..start + name as usize - 1];
            let content = (start + name as usize).next_multiple_of(4);
            let end = content + size as usize;
            found.push((
                String::from_utf8_lossy(text).into_owned(),
                mode,
                (major, minor),
                bytes[content..end].to_vec(),
            ));
            at = end.next_multiple_of(4);
        }
        let expected = [
            ("a", FOLDER, (0, 0), &b""[..]),
            ("a/b", FOLDER, (0, 0), b""),
            ("a/b/x", PROGRAM, (0, 0), b"12345"),
            ("a/y", CHARACTER_DEVICE, (5, 1), b""),
            ("TRAILER!!!", 0, (0, 0), b""),
        ]
        .map(|(name, mode, device, content)| (name.to_owned(), mode, device, content.to_owned()));
        assert_eq!(found, expected);
    }
}
