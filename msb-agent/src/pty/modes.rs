//! Terminal modes by their numbers in SSH (RFC 4254 section 8).

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    tcgetattr, tcsetattr,
};

/// Value by which a client disables a special character.
const DISABLED: u32 = 255;

/// Special characters by number, without those that Linux lacks.
const CODES: [(u8, SpecialCodeIndex); 15] = [
    (1, SpecialCodeIndex::VINTR),
    (2, SpecialCodeIndex::VQUIT),
    (3, SpecialCodeIndex::VERASE),
    (4, SpecialCodeIndex::VKILL),
    (5, SpecialCodeIndex::VEOF),
    (6, SpecialCodeIndex::VEOL),
    (7, SpecialCodeIndex::VEOL2),
    (8, SpecialCodeIndex::VSTART),
    (9, SpecialCodeIndex::VSTOP),
    (10, SpecialCodeIndex::VSUSP),
    (12, SpecialCodeIndex::VREPRINT),
    (13, SpecialCodeIndex::VWERASE),
    (14, SpecialCodeIndex::VLNEXT),
    (16, SpecialCodeIndex::VSWTC),
    (18, SpecialCodeIndex::VDISCARD),
];

const INPUT: [(u8, InputModes); 13] = [
    (30, InputModes::IGNPAR),
    (31, InputModes::PARMRK),
    (32, InputModes::INPCK),
    (33, InputModes::ISTRIP),
    (34, InputModes::INLCR),
    (35, InputModes::IGNCR),
    (36, InputModes::ICRNL),
    (37, InputModes::IUCLC),
    (38, InputModes::IXON),
    (39, InputModes::IXANY),
    (40, InputModes::IXOFF),
    (41, InputModes::IMAXBEL),
    // RFC 8160.
    (42, InputModes::IUTF8),
];

const LOCAL: [(u8, LocalModes); 13] = [
    (50, LocalModes::ISIG),
    (51, LocalModes::ICANON),
    (52, LocalModes::XCASE),
    (53, LocalModes::ECHO),
    (54, LocalModes::ECHOE),
    (55, LocalModes::ECHOK),
    (56, LocalModes::ECHONL),
    (57, LocalModes::NOFLSH),
    (58, LocalModes::TOSTOP),
    (59, LocalModes::IEXTEN),
    (60, LocalModes::ECHOCTL),
    (61, LocalModes::ECHOKE),
    (62, LocalModes::PENDIN),
];

const OUTPUT: [(u8, OutputModes); 6] = [
    (70, OutputModes::OPOST),
    (71, OutputModes::OLCUC),
    (72, OutputModes::ONLCR),
    (73, OutputModes::OCRNL),
    (74, OutputModes::ONOCR),
    (75, OutputModes::ONLRET),
];

/// Control modes: the character size is a value under a mask, the parity modes are flags.
const CS7: u8 = 90;
const CS8: u8 = 91;
const PARENB: u8 = 92;
const PARODD: u8 = 93;

/// Sets modes of a terminal. Unknown numbers and speeds are ignored, as the RFC requires.
pub(crate) fn set(terminal: impl AsFd, modes: &[(u8, u32)]) -> Result<(), Errno> {
    if modes.is_empty() {
        return Ok(());
    }
    let mut state = tcgetattr(&terminal)?;
    for (number, value) in modes {
        apply(&mut state, *number, *value);
    }
    tcsetattr(&terminal, OptionalActions::Now, &state)
}

fn apply(state: &mut Termios, number: u8, value: u32) {
    let on = value != 0;
    if let Some(code) = named(&CODES, number) {
        // On Linux, 0 disables a special character.
        let code_value = if value == DISABLED { 0 } else { value };
        state.special_codes[code] = u8::try_from(code_value).unwrap_or(0);
    } else if let Some(mode) = named(&INPUT, number) {
        state.input_modes.set(mode, on);
    } else if let Some(mode) = named(&LOCAL, number) {
        state.local_modes.set(mode, on);
    } else if let Some(mode) = named(&OUTPUT, number) {
        state.output_modes.set(mode, on);
    } else {
        apply_control(&mut state.control_modes, number, on);
    }
}

fn apply_control(modes: &mut ControlModes, number: u8, on: bool) {
    match number {
        CS7 | CS8 if on => {
            modes.remove(ControlModes::CSIZE);
            modes.insert(if number == CS7 { ControlModes::CS7 } else { ControlModes::CS8 });
        }
        PARENB => modes.set(ControlModes::PARENB, on),
        PARODD => modes.set(ControlModes::PARODD, on),
        _ => {}
    }
}

fn named<T: Copy>(table: &[(u8, T)], number: u8) -> Option<T> {
    let found = table.iter().find(|(known, _)| *known == number);
    found.map(|(_, mode)| *mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_wire::exec::WindowSize;

    #[test]
    fn requested_modes_are_set_and_others_kept() {
        let size = WindowSize { rows: 24, cols: 80 };
        let owner = rustix::process::getuid().as_raw();
        let (_ours, theirs) = super::super::open(size, owner).unwrap();
        let before = tcgetattr(&theirs).unwrap();
        assert!(before.local_modes.contains(LocalModes::ECHO));
        // No echo, UTF-8, another interrupt character, none for suspend; a speed and an unknown
        // number.
        set(&theirs, &[(53, 0), (42, 1), (1, 0x1d), (10, 255), (128, 9600), (200, 1)]).unwrap();
        let after = tcgetattr(&theirs).unwrap();
        assert!(!after.local_modes.contains(LocalModes::ECHO));
        assert!(after.local_modes.contains(LocalModes::ICANON));
        assert!(after.input_modes.contains(InputModes::IUTF8));
        assert_eq!(after.special_codes[SpecialCodeIndex::VINTR], 0x1d);
        assert_eq!(after.special_codes[SpecialCodeIndex::VSUSP], 0);
        assert_eq!(
            after.special_codes[SpecialCodeIndex::VEOF],
            before.special_codes[SpecialCodeIndex::VEOF]
        );
        assert_eq!(after.control_modes, before.control_modes);
    }
}
