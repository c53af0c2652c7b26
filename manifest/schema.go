package manifest

// schema is that of rfs, so that rfs finds every table and column it asks for.
const schema = `
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER,
    name VARCHAR(255),
    size INTEGER,
    uid INTEGER,
    gid INTEGER,
    mode INTEGER,
    rdev INTEGER,
    ctime INTEGER,
    mtime INTEGER
);
CREATE TABLE extra (ino INTEGER PRIMARY KEY, data VARCHAR(4096));
CREATE TABLE block (ino INTEGER, id VARCHAR(32), key VARCHAR(32));
CREATE TABLE tag (key VARCHAR(10) PRIMARY KEY, value VARCHAR(255));
CREATE TABLE route (start INTEGER, end INTEGER, url VARCHAR(2048));
`

// additions are ours. rfs ignores tables, indexes, views and triggers that it
// does not know.
//
// hardlink: row ino is one more name of row first. Both have all columns and
// block rows, so a reader that does not know the table sees two equal files.
//
// inline: objects that the manifest carries itself, of files that are small and
// needed early. The stores have them too.
//
// module: what the kernel modules among the files say of themselves. Lists have
// one value a line.
//
// stores: the routes under the names that people look for, to be read and
// written with any SQLite shell.
const additions = `
CREATE TABLE hardlink (ino INTEGER PRIMARY KEY, first INTEGER NOT NULL);
CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;
CREATE TABLE inline (id BLOB NOT NULL, object BLOB NOT NULL);
CREATE TABLE module (
    ino INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    vermagic TEXT NOT NULL,
    signer TEXT NOT NULL,
    aliases TEXT NOT NULL,
    depends TEXT NOT NULL,
    softdeps TEXT NOT NULL,
    weakdeps TEXT NOT NULL,
    firmware TEXT NOT NULL
);
CREATE VIEW stores (id, uri) AS SELECT rowid, url FROM route;
CREATE TRIGGER stores_update INSTEAD OF UPDATE ON stores BEGIN
    UPDATE route SET rowid = NEW.id, url = NEW.uri WHERE rowid = OLD.id;
END;
CREATE TRIGGER stores_insert INSTEAD OF INSERT ON stores BEGIN
    INSERT INTO route (rowid, start, end, url) VALUES (NEW.id, 0, 255, NEW.uri);
END;
CREATE TRIGGER stores_delete INSTEAD OF DELETE ON stores BEGIN
    DELETE FROM route WHERE rowid = OLD.id;
END;
`

// indexes are made after the rows, which is faster and packs them tighter. The
// first three are rfs's.
const indexes = `
CREATE INDEX parents ON inode (parent);
CREATE INDEX names ON inode (name);
CREATE INDEX block_ino ON block (ino);
CREATE INDEX parent_name ON inode (parent, name);
`
