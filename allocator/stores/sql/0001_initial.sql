-- One file holds everything that must outlive the process. A `proof` is a check number of its row, worked out by the store: SQLite
-- notices a page that makes no sense, but not a changed digit.

PRAGMA application_id = 0x616C6C6F;

CREATE TABLE secret (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    key BLOB NOT NULL CHECK (length(key) = 32),
    proof INTEGER NOT NULL
);

CREATE TABLE records (
    name TEXT PRIMARY KEY NOT NULL,
    uid TEXT NOT NULL,
    version INTEGER NOT NULL,
    document TEXT NOT NULL
);

-- Experiments as the rest of the file calls them: by a small number. Their buckets up to `through` are closed, and divided by `coarsen`.
-- mark: when their cells last changed; marks only grow, and 0 is never.
CREATE TABLE experiments (
    number INTEGER PRIMARY KEY,
    uid TEXT UNIQUE NOT NULL,
    through INTEGER,
    coarsen INTEGER NOT NULL DEFAULT 0,
    mark INTEGER NOT NULL DEFAULT 0,
    proof INTEGER NOT NULL
);

CREATE INDEX experiments_mark ON experiments (mark);

-- Sums of outcomes and exposures by bucket of decision time, while the bucket still takes outcomes.
CREATE TABLE cells (
    experiment INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    arm INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    stream TEXT NOT NULL,
    count INTEGER NOT NULL,
    total INTEGER NOT NULL,
    square_high INTEGER NOT NULL,
    square_low INTEGER NOT NULL,
    proof INTEGER NOT NULL,
    PRIMARY KEY (experiment, bucket, arm, segment, stream),
    -- A sum that leaves 64 bits would go on as a float.
    CONSTRAINT int64 CHECK (
        typeof(bucket) = 'integer' AND typeof(arm) = 'integer' AND typeof(segment) = 'integer'
        AND typeof(count) = 'integer' AND typeof(total) = 'integer'
        AND typeof(square_high) = 'integer' AND typeof(square_low) = 'integer'
    )
) WITHOUT ROWID;

-- The same of closed buckets, under coarser bucket numbers.
CREATE TABLE settled (
    experiment INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    arm INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    stream TEXT NOT NULL,
    count INTEGER NOT NULL,
    total INTEGER NOT NULL,
    square_high INTEGER NOT NULL,
    square_low INTEGER NOT NULL,
    proof INTEGER NOT NULL,
    PRIMARY KEY (experiment, bucket, arm, segment, stream),
    CONSTRAINT int64 CHECK (
        typeof(bucket) = 'integer' AND typeof(arm) = 'integer' AND typeof(segment) = 'integer'
        AND typeof(count) = 'integer' AND typeof(total) = 'integer'
        AND typeof(square_high) = 'integer' AND typeof(square_low) = 'integer'
    )
) WITHOUT ROWID;

-- Which metrics of which decision have been counted, until its bucket is closed. The bucket comes before the nonce: what is written
-- together lies together, and what is forgotten together too. nonce: its 8 bytes as a number, big-endian, with a sign.
CREATE TABLE seen (
    experiment INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    nonce INTEGER NOT NULL,
    metrics INTEGER NOT NULL,
    PRIMARY KEY (experiment, bucket, nonce),
    CONSTRAINT int64 CHECK (typeof(bucket) = 'integer' AND typeof(nonce) = 'integer' AND typeof(metrics) = 'integer')
) WITHOUT ROWID;

-- What was ever set aside of budgets. It only grows.
CREATE TABLE grants (
    uid TEXT NOT NULL,
    arm INTEGER NOT NULL,
    kind TEXT NOT NULL,
    granted INTEGER NOT NULL,
    proof INTEGER NOT NULL,
    PRIMARY KEY (uid, arm, kind),
    CONSTRAINT int64 CHECK (typeof(arm) = 'integer' AND typeof(granted) = 'integer')
) WITHOUT ROWID;

-- seconds is text: the digest covers its digits.
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    seconds TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    experiment TEXT NOT NULL,
    reason TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    digest TEXT NOT NULL
);

CREATE INDEX audit_experiment ON audit (experiment, sequence);

CREATE TRIGGER audit_is_appended BEFORE INSERT ON audit
WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM audit)
BEGIN
    SELECT RAISE (ABORT, 'audit records are appended in order');
END;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE (ABORT, 'audit records are never changed');
END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE (ABORT, 'audit records are never deleted');
END;
