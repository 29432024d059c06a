# bash completion of msb. Commands come from `msb --list-commands`, options from the programs themselves,
# names from the state directory: nothing here has to be kept in step.

_msb_images() {
    # As people type them: docker.io/library/alpine:latest is alpine.
    "$1" image list --quiet | sed -e 's|^docker\.io/||' -e 's|^library/||' -e 's|:latest$||'
}

_msb_names() {
    # Names for the words after a command: sandboxes or images.
    case $2 in
        msb-exec | msb-inspect | msb-logs | msb-modify | msb-pause | msb-ping | msb-ps | msb-restart | msb-resume | msb-rm | msb-start | msb-stop | msb-wait) "$1" list --quiet ;;
        msb-cp) "$1" list --quiet | sed 's|$|:/|' ;;
        msb-run) _msb_images "$1" ;;
        msb-image) [[ $3 == inspect || $3 == remove || $3 == rm ]] && _msb_images "$1" ;;
    esac 2>/dev/null
}

_msb() {
    local msb=${COMP_WORDS[0]/#\~/$HOME} cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    if ((COMP_CWORD == 1)) || { ((COMP_CWORD == 2)) && [[ ${COMP_WORDS[1]} == help ]]; }; then
        local words
        words=$("$msb" --list-commands 2>/dev/null)
        [[ $cur == -* ]] && words='--help --version --tree'
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi

    local -a tool
    read -ra tool < <("$msb" --resolve "${COMP_WORDS[1]}" 2>/dev/null)
    ((${#tool[@]})) || return
    # The program's own function, by what it registered for itself.
    local function
    if ! complete -p "${tool[0]}" &>/dev/null; then
        eval "$("$msb" "${COMP_WORDS[1]}" --generate completions-bash 2>/dev/null)"
    fi
    function=$(complete -p "${tool[0]}" 2>/dev/null) || return
    [[ $function == *' -F '* ]] || return
    function=${function##* -F }
    function=${function%% *}

    # The program's own function sees its own command line: `msb load -i x` is `msb-image load -i x`.
    local index=$((COMP_CWORD - 2 + ${#tool[@]}))
    COMP_WORDS=("${tool[@]}" "${COMP_WORDS[@]:2}")
    COMP_CWORD=$index
    "$function" "${tool[0]}" "$cur" "$prev"

    # It shows `<NAME>` where it knows no words; these are ours to fill.
    local word
    local -a kept=()
    for word in "${COMPREPLY[@]}"; do
        [[ $word == \<* || $word == \[* ]] || kept+=("$word")
    done
    COMPREPLY=("${kept[@]}")
    if [[ $cur != -* && ($prev != -* || $prev == -@(f|-force|q|-quiet|-)) ]]; then
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$(_msb_names "$msb" "${tool[0]}" "${COMP_WORDS[1]}")" -- "$cur")
    fi
}

complete -o bashdefault -o default -F _msb msb
