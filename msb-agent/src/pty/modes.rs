//! Modes of a terminal, by the numbers that SSH gives them (RFC 4254, 8).

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    tcgetattr, tcsetattr,
};

/// The value by which a client says that a special character is off.
const DISABLED: u32 = 255;

/// Special characters by number. What Linux does not have is not here.
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

/// The size of a byte is one of several values under a mask, the odd parity a flag.
const CS7: u8 = 90;
const CS8: u8 = 91;
const PARENB: u8 = 92;
const PARODD: u8 = 93;

/// Sets modes of a terminal. Numbers that are not known, and speeds, are passed over: the RFC asks for it.
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
        // 0 turns a special character off on Linux.
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
            modes.insert(if number == CS7 {
                ControlModes::CS7
            } else {
                ControlModes::CS8
            });
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
    fn a_terminal_has_the_modes_that_were_asked_for_and_its_own_otherwise() {
        let size = WindowSize { rows: 24, cols: 80 };
        let owner = rustix::process::getuid().as_raw();
        let (_ours, theirs) = super::super::open(size, owner).unwrap();
        let before = tcgetattr(&theirs).unwrap();
        assert!(before.local_modes.contains(LocalModes::ECHO));
        // No echo, UTF-8, another interrupt character, none for suspending; a speed and an unknown number.
        set(
            &theirs,
            &[
                (53, 0),
                (42, 1),
                (1, 0x1d),
                (10, 255),
                (128, 9600),
                (200, 1),
            ],
        )
        .unwrap();
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
