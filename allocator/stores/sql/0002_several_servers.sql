-- What several servers, and people with approvals and tokens, ask of a store: a term for the one planner, news of what was changed, items.

-- One row. epoch: which life of the data this is; term: number of the last planner's term; mark: grows with each save and put.
CREATE TABLE life (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    epoch TEXT NOT NULL,
    term INTEGER NOT NULL,
    mark INTEGER NOT NULL,
    proof INTEGER NOT NULL
);

-- mark: of its last save.
ALTER TABLE records ADD COLUMN mark INTEGER NOT NULL DEFAULT 1;

CREATE INDEX records_mark ON records (mark);

-- Small documents, by kind and key.
CREATE TABLE items (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    proof INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;

-- When an item of each kind was last put or removed.
CREATE TABLE kinds (
    kind TEXT PRIMARY KEY NOT NULL,
    mark INTEGER NOT NULL
) WITHOUT ROWID;
