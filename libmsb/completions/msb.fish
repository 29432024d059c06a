# fish completion of msb. Commands come from `msb --list-commands`, options from the programs themselves,
# names from the state directory: nothing here has to be kept in step.

function __msb_words
    # Words before the cursor, the program first.
    commandline --tokenize --cut-at-cursor --current-process
end

function __msb_at_command
    set --local words (__msb_words)
    test (count $words) -eq 1; or test (count $words) -eq 2 -a "$words[2]" = help
end

function __msb_names --argument-names msb tool verb
    # Names for the words after a command: sandboxes or images.
    switch "$tool $verb"
        case 'msb-exec *' 'msb-inspect *' 'msb-logs *' 'msb-modify *' 'msb-pause *' 'msb-ping *' 'msb-ps *' 'msb-restart *' 'msb-resume *' 'msb-rm *' 'msb-start *' 'msb-stop *' 'msb-wait *'
            $msb list --quiet 2>/dev/null
        case 'msb-cp *'
            $msb list --quiet 2>/dev/null | string replace --regex '$' ':/'
        case 'msb-run *' 'msb-image inspect' 'msb-image remove' 'msb-image rm'
            # As people type them: docker.io/library/alpine:latest is alpine.
            $msb image list --quiet 2>/dev/null | string replace --regex '^docker\.io/(library/)?' '' | string replace --regex ':latest$' ''
    end
end

function __msb_arguments
    set --local words (__msb_words)
    set --local current (commandline --current-token --cut-at-cursor)
    set --local msb $words[1]
    set --local tool ($msb --resolve $words[2] 2>/dev/null | string split ' ')
    test (count $tool) -gt 0; or return
    if not contains -- $tool[1] $__msb_loaded
        $msb $words[2] --generate completions-fish 2>/dev/null | source
        set --global --append __msb_loaded $tool[1]
    end

    # The program's own completions see its own command line: `msb load -i x` is `msb-image load -i x`.
    set words $tool $words[3..-1]
    set --local names
    if not string match --quiet --regex -- '^-' "$current"
        and not string match --quiet --regex -- '^-(?!f$|-force$|q$|-quiet$|-$)' "$words[-1]"
        set names (__msb_names $msb $tool[1] "$words[2]")
    end
    if set --query names[1]
        printf '%s\n' $names
    else
        complete --do-complete (string join ' ' -- (string escape -- $words) (string escape --no-quoted -- $current))
    end
end

complete --command msb --no-files --condition __msb_at_command --arguments '(msb --list-commands --long 2>/dev/null)'
complete --command msb --no-files --condition __msb_at_command --long-option help --short-option h --description 'Show help'
complete --command msb --no-files --condition __msb_at_command --long-option version --short-option V --description 'Show the version'
complete --command msb --no-files --condition __msb_at_command --long-option tree --description 'Show every command'
complete --command msb --no-files --condition 'not __msb_at_command' --arguments '(__msb_arguments)'
