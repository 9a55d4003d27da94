#!lua flags=allow-oom
-- Refuse saves of intents up to this one from now on: whoever announced them has been silent for too long. KEYS: meta. ARGV: token.

at_least(KEYS[1], 'cancelled', tonumber(ARGV[1]))
