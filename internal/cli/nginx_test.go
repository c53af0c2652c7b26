package cli

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"overmount/internal/testenv"
)

// nginxConfig is all that an nginx needs which runs in the foreground, keeps its
// files in one directory, and stays the user that starts it.
const nginxConfig = `
%s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events { }
http {
	access_log access.log;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	default_type application/octet-stream;
	server {
		listen %s;
		root %s;
		location / {
			limit_except GET { deny all; }
			add_header Cache-Control "public, max-age=31536000, immutable";
		}
	}
}
`

// startNginx serves a directory with a real nginx, and returns its URL.
func startNginx(t *testing.T, dir string) string {
	t.Helper()
	program := testenv.Nginx(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := l.(*net.TCPListener).File()
	l.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	work := t.TempDir()
	config := filepath.Join(work, "nginx.conf")
	user := ""
	if os.Geteuid() == 0 { // only then it would become another
		user = "user root;"
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, user, l.Addr(), dir), 0o644); err != nil {
		t.Fatal(err)
	}
	// A new nginx takes the sockets of an old one from the environment: so it
	// accepts from the beginning, at a port that nobody else can have.
	cmd := exec.Command(program, "-p", work, "-c", config)
	cmd.Env = append(os.Environ(), "NGINX=3;")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("nginx: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}
