# bash completion of msb. The candidates come from `msb --complete`, which asks the program of the
# command, so this script needs no updates for new commands and options.

_msb() {
    local msb=${COMP_WORDS[0]/#\~/$HOME} line=${COMP_LINE:0:COMP_POINT} word candidate file
    local -a words files=()
    # The words as typed: bash splits them at colons and equals signs too.
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    word=${words[-1]}
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        if [[ $candidate == :files ]]; then
            mapfile -t files < <(compgen -f -- "$word")
            continue
        fi
        # Only the part after the last colon or equals sign is replaced.
        COMPREPLY+=("${candidate#"${word%"${word##*[:=]}"}"}")
        # A path or a value follows.
        [[ $candidate == *:/ || $candidate == *= ]] && compopt -o nospace 2>/dev/null
    done < <("$msb" --complete "${words[@]:1}" 2>/dev/null)
    if ((${#COMPREPLY[@]} == 0)); then
        # bash quotes names of files, and appends a slash to directories.
        compopt -o filenames 2>/dev/null
        COMPREPLY=("${files[@]}")
        return
    fi
    for file in "${files[@]}"; do
        [[ -d $file ]] && file+=/
        printf -v file %q "$file"
        COMPREPLY+=("$file")
    done
}

complete -F _msb msb
