# fish completion of msb. The candidates come from `msb --complete`, which asks the program of the
# command, so this script needs no updates for new commands and options.

function __msb_candidates
    # Words before the cursor, the program first; then the word at the cursor.
    set --local words (commandline --tokenize --cut-at-cursor --current-process)
    set --local current (commandline --current-token --cut-at-cursor)
    set --local candidates ($words[1] --complete $words[2..-1] "$current" 2>/dev/null)
    for candidate in $candidates
        if test "$candidate" = :files
            __fish_complete_path "$current"
        else
            printf '%s\n' $candidate
        end
    end
end

complete --command msb --no-files --arguments '(__msb_candidates)'
