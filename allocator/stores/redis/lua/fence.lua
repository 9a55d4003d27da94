#!lua flags=allow-oom
-- Refuse saves of terms before this one from now on. KEYS: meta of an experiment. ARGV: term.

at_least(KEYS[1], 'term', tonumber(ARGV[1]))
