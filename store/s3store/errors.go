package s3store

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"overmount/internal/httpclient"
	"overmount/store"
)

const (
	maxErrorBody = 64 << 10
	maxMessage   = 300 // bytes shown of what a server writes
)

// An answerError is an answer other than success, with what its body says.
type answerError struct {
	status        int
	code, message string // empty if the body is no S3 error, or there is none
	region        string // the server's, if it tells
	reason        string // for people; empty if there is nothing to add
}

func (e *answerError) Error() string {
	said := strings.TrimSpace(fmt.Sprintf("status %d %s", e.status, http.StatusText(e.status)))
	if e.code != "" {
		said += ", " + e.code
	}
	if e.message != "" {
		said += fmt.Sprintf(": %q", e.message)
	}
	if e.reason == "" {
		return said
	}
	return fmt.Sprintf("%s (%s)", e.reason, said)
}

// temporary reports whether the same request may succeed later. Some failures of
// the way between have a status that says otherwise.
func (e *answerError) temporary() bool {
	switch e.code {
	case "RequestTimeout", "IncompleteBody", "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "SlowDown", "OperationAborted":
		return true
	}
	switch e.status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return e.status < 300 || e.status >= 500
}

// denied reports whether the server says no more than no: the key may be wrong
// for this, or what is asked for may not be there.
func (e *answerError) denied() bool {
	return e.status == http.StatusForbidden && (e.code == "" || e.code == "AccessDenied") && !e.unknownKey() && !e.wrongSecret()
}

// Garage has the code AccessDenied for both, and differs in the message; versitygw
// has a code of its own.
func (e *answerError) unknownKey() bool {
	return e.code == "InvalidAccessKeyId" || e.code == "XAdminUserNotFound" || e.code == "AccessDenied" && strings.Contains(e.message, "No such key")
}

func (e *answerError) wrongSecret() bool {
	return e.code == "SignatureDoesNotMatch" || e.code == "AccessDenied" && strings.Contains(e.message, "Invalid signature")
}

func (e *answerError) skewed() bool {
	return e.code == "RequestTimeTooSkewed" || e.code == "RequestExpired" || strings.Contains(e.message, "Date is too old")
}

// refusal returns the error for an answer other than success.
func (s *Store) refusal(r request, resp *http.Response, region string) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := parseError(resp.StatusCode, body)
	e.message = s.presentable(e.message)
	if region := resp.Header.Get("X-Amz-Bucket-Region"); validRegion(region) {
		e.region = region
	}
	e.reason = s.reason(r, e, resp, region)
	switch {
	case e.temporary():
		if after, ok := httpclient.RetryAfter(resp.Header, time.Now()); ok {
			return &store.BusyError{Err: e, After: after}
		}
		return e
	case e.status == http.StatusNotFound && e.code != "NoSuchBucket" && r.key != "" && (r.method == http.MethodGet || r.method == http.MethodHead):
		return fmt.Errorf("%w: %w", store.ErrNotFound, e)
	}
	return fmt.Errorf("%w: %w", store.ErrForbidden, e)
}

// parseError reads the body of an answer that is no success. Any bytes will do.
func parseError(status int, body []byte) *answerError {
	var x struct {
		XMLName               xml.Name `xml:"Error"`
		Code, Message, Region string
	}
	e := &answerError{status: status}
	if err := xml.Unmarshal(body, &x); err != nil || !validCode(x.Code) {
		return e
	}
	e.code, e.message = x.Code, x.Message
	if validRegion(x.Region) {
		e.region = x.Region
	}
	return e
}

// validCode reports whether s looks like a code as all servers write them.
func validCode(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '.'
	})
}

// presentable returns what a server wrote, in one short line and without our
// secrets, which it may have from our own request.
func (s *Store) presentable(text string) string {
	text = s.creds.hide(text)
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return text
}

// reason says in a sentence what is wrong and whose it is to change, as far as
// the answer tells. Codes are those of AWS, which most servers use.
func (s *Store) reason(r request, e *answerError, resp *http.Response, region string) string {
	switch {
	case e.unknownKey():
		return "the server does not know the key id"
	case e.wrongSecret():
		return "the secret key is wrong, or a proxy has changed the request"
	case e.code == "InvalidToken", e.code == "ExpiredToken", e.code == "TokenRefreshRequired":
		return "the session token is not valid, or no longer"
	case e.skewed():
		return skew(resp.Header, time.Now())
	case e.code == "NoSuchBucket":
		return fmt.Sprintf("there is no bucket %q", s.bucket)
	case e.code == "InvalidBucketName":
		return fmt.Sprintf("%q cannot be the name of a bucket", s.bucket)
	case e.region != "" && e.region != region && s.creds != nil && (e.status == http.StatusBadRequest || e.status/100 == 3):
		return fmt.Sprintf("the server's region is %q, and the request is signed for %q: give region=%s", e.region, region, e.region)
	case e.code == "AuthorizationHeaderMalformed":
		return fmt.Sprintf("the server does not take the signature for region %q: give the right region=REGION", region)
	case e.status/100 == 3:
		return "the server redirects to another place: the store's URL must name that, with the right region"
	case e.status == http.StatusProxyAuthRequired:
		return "the proxy wants credentials"
	case e.code == "" && e.status/100 == 4 && r.hasErrorBody():
		return s.noS3()
	case e.denied() && s.creds == nil:
		return "this needs credentials, and there are none"
	case e.denied() && r.method == http.MethodHead:
		return "the answer to HEAD does not say why"
	case e.denied():
		return "the key has no right to " + right(r)
	}
	return ""
}

// hasErrorBody reports whether every S3 server answers a failure of the request
// with an error in XML. A website has other pages for its missing keys.
func (r *request) hasErrorBody() bool {
	return r.method != http.MethodHead && (r.method != http.MethodGet || r.list)
}

func right(r request) string {
	switch {
	case r.list:
		return "list the bucket"
	case r.method == http.MethodPut:
		return "write"
	case r.method == http.MethodDelete:
		return "delete"
	}
	return "read this, or it is not there and the key has no right to list"
}

func (s *Store) noS3() string {
	other := "s3s:// instead of s3://"
	if s.scheme == "https" {
		other = "s3:// instead of s3s://"
	}
	return fmt.Sprintf("%s does not speak S3: want the address of the S3 API, not of a website, or %s", s.host, other)
}

// skew says how far our clock is from the server's.
func skew(h http.Header, now time.Time) string {
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return "this machine's clock differs too much from the server's: set it"
	}
	if d := now.Sub(date).Round(time.Second); d >= 0 {
		return fmt.Sprintf("this machine's clock is %v ahead of the server's: set it", d)
	}
	return fmt.Sprintf("this machine's clock is %v behind the server's: set it", date.Sub(now).Round(time.Second))
}
