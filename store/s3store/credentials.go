package s3store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Credentials sign requests. However they are printed or encoded, only the fact
// that there are some is seen.
type Credentials struct {
	KeyID, Secret string
	SessionToken  string // of temporary credentials, else empty
}

// String returns "S3 credentials".
func (c Credentials) String() string { return "S3 credentials" }

// Format prints String for every verb.
func (c Credentials) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// MarshalText returns String: JSON and logs show no more.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// hide replaces what is secret in a text. It is there for nil, too.
func (c *Credentials) hide(text string) string {
	if c == nil {
		return text
	}
	for _, secret := range []string{c.Secret, c.SessionToken} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "(hidden)")
		}
	}
	return text
}

const maxCredentialsFile = 1 << 20

// LoadCredentials finds credentials where AWS's tools do. getenv is os.Getenv, or
// what stands for it in tests.
//
//  1. In file, if that is not empty: it is then the only place.
//  2. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN if it is set.
//  3. In the file AWS_SHARED_CREDENTIALS_FILE, else $HOME/.aws/credentials.
//
// Files have sections in brackets, and lines "key = value" in them. The section is
// AWS_PROFILE, else "default"; the keys are aws_access_key_id,
// aws_secret_access_key and aws_session_token. Keys that name programs, roles or
// services are not obeyed.
//
// It returns nil if there are none. What was asked for by name, a file or a
// profile, must be there. No error shows any value.
func LoadCredentials(getenv func(string) string, file string) (*Credentials, error) {
	profile := cmp.Or(getenv("AWS_PROFILE"), "default")
	if file != "" {
		return fromFile(file, profile, true)
	}
	c := &Credentials{getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SESSION_TOKEN")}
	switch {
	case c.KeyID != "" && c.Secret != "":
		return c, nil
	case c.KeyID != "":
		return nil, errors.New("AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not")
	case c.Secret != "":
		return nil, errors.New("AWS_SECRET_ACCESS_KEY is set, and AWS_ACCESS_KEY_ID is not")
	}
	if file := getenv("AWS_SHARED_CREDENTIALS_FILE"); file != "" {
		return fromFile(file, profile, true)
	}
	home := getenv("HOME")
	if home == "" {
		return nil, nil
	}
	return fromFile(filepath.Join(home, ".aws", "credentials"), profile, getenv("AWS_PROFILE") != "")
}

// LoadRegion returns the region that AWS's environment variables name, or "".
func LoadRegion(getenv func(string) string) string {
	return cmp.Or(getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION"))
}

// fromFile reads one profile of a file. Unless it is wanted, it may be missing.
func fromFile(path, profile string, wanted bool) (*Credentials, error) {
	data, err := readFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && !wanted {
			return nil, nil
		}
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	c, err := parseProfile(data, profile)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read credentials: %s: %w", path, err)
	case c.KeyID == "" && c.Secret == "" && !wanted:
		return nil, nil
	case c.KeyID == "" || c.Secret == "":
		return nil, fmt.Errorf("read credentials: %s: profile %q has not both aws_access_key_id and aws_secret_access_key", path, profile)
	}
	return c, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCredentialsFile+1))
	if err == nil && len(data) > maxCredentialsFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxCredentialsFile)
	}
	return data, err
}

// parseProfile reads one section of a file as AWS's tools write it. They know no
// quotes and no escapes in it: a secret may have any character but a space before
// a # or a ; which begins a comment.
func parseProfile(data []byte, profile string) (*Credentials, error) {
	c := new(Credentials)
	fields := map[string]*string{
		"aws_access_key_id": &c.KeyID, "aws_secret_access_key": &c.Secret, "aws_session_token": &c.SessionToken,
	}
	section, number := "", 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) {
		number++
		text := strings.TrimSpace(uncomment(string(line)))
		if text == "" {
			continue
		}
		if name, ok := strings.CutPrefix(text, "["); ok {
			name, ok = strings.CutSuffix(name, "]")
			if !ok {
				return nil, fmt.Errorf("line %d: a section's name has no ] at its end", number)
			}
			section = strings.TrimSpace(name)
			continue
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("line %d: want a [section] or key = value", number)
		}
		nested := line[0] == ' ' || line[0] == '\t' // below another key
		if field := fields[strings.ToLower(strings.TrimSpace(name))]; field != nil && section == profile && !nested {
			*field = strings.TrimSpace(value)
		}
	}
	return c, nil
}

// uncomment cuts off a comment: a # or ; at the beginning or after a space.
func uncomment(line string) string {
	for i := range len(line) {
		if (line[i] == '#' || line[i] == ';') && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}
