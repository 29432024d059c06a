//! Escaping of untrusted text (from a guest, an archive, a file name) for a terminal.
//!
//! An escape sequence in a name could rewrite the screen or type into the shell, and a
//! right-to-left mark could reverse a name. Both, and bytes that are not UTF-8, are shown by their
//! numbers: `\x1b`, `\u{202e}`, `\xff`.

use std::borrow::Cow;

/// Returns the text with control and invisible characters replaced by visible ones.
pub fn escape<T: AsRef<[u8]> + ?Sized>(text: &T) -> Cow<'_, str> {
    let bytes = text.as_ref();
    if let Ok(text) = std::str::from_utf8(bytes)
        && text.chars().all(is_safe)
    {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|character| put_char(&mut safe, character));
        chunk.invalid().iter().for_each(|byte| put_byte(&mut safe, *byte));
    }
    Cow::Owned(safe)
}

/// Returns whether a terminal shows the character and does nothing else.
pub(crate) fn is_safe(character: char) -> bool {
    let directs_text = matches!(character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    !character.is_control() && !directs_text
}

fn put_char(safe: &mut String, character: char) {
    match character {
        '\n' => safe.push_str("\\n"),
        '\t' => safe.push_str("\\t"),
        '\r' => safe.push_str("\\r"),
        _ if is_safe(character) => safe.push(character),
        _ if character.is_ascii() => put_byte(safe, character as u8),
        _ => safe.push_str(&format!("\\u{{{:x}}}", character as u32)),
    }
}

fn put_byte(safe: &mut String, byte: u8) {
    safe.push_str(&format!("\\x{byte:02x}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_not_copied() {
        assert!(matches!(escape("gr\u{fc}n \u{65e5}\u{672c}"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_a_terminal_would_act_upon_becomes_visible() {
        assert_eq!(escape("\x1b[2Jx\n\ty\r"), "\\x1b[2Jx\\n\\ty\\r");
        assert_eq!(escape("a\u{9b}31m"), "a\\u{9b}31m");
        assert_eq!(escape("abc\u{202e}gpj"), "abc\\u{202e}gpj");
        assert_eq!(escape("\u{7f}"), "\\x7f");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_by_number() {
        assert_eq!(escape(b"ok\xff\xfe!"), "ok\\xff\\xfe!");
    }
}
